// Rates of an engine from two of its snapshots: what happened between them. Null where nothing did.

export function rates(before, after, seconds) {
  const change = (name) => after[name] - before[name];
  const steps = change("num_steps");
  const tokens = change("num_output_tokens");
  const passes = tokens - change("num_accepted_tokens"); // of requests: each ends in the target's own token
  const stepSeconds = change("step_seconds");
  const decisions = {};
  for (const [reason, count] of Object.entries(after.decisions)) {
    const more = count - (before.decisions[reason] ?? 0);
    if (more > 0) decisions[reason] = more;
  }
  return {
    tokensPerSecond: tokens / seconds,
    // at the same load plain decoding would have taken plain_seconds for what took step_seconds
    speedup: stepSeconds > 0 && change("plain_seconds") > 0 ? change("plain_seconds") / stepSeconds : null,
    acceptanceLength: passes > 0 ? tokens / passes : null,
    rowsPerPass: steps > 0 ? change("num_rows") / steps : null,
    draftShare: stepSeconds > 0 ? change("draft_seconds") / stepSeconds : null,
    decisions,
  };
}

// A server that was started anew counts from zero again.
export function isRestart(before, after) {
  return after.num_steps < before.num_steps || after.num_output_tokens < before.num_output_tokens;
}
