// Recordings shown side by side in the time that they took.

const STILL = matchMedia("(prefers-reduced-motion: reduce)");

// Resolves when all are shown to their ends; at once where motion is unwelcome, nobody looks, or `signal` says to skip.
export function replay(recordings, panes, chart, signal) {
  panes.forEach((pane) => pane.reset());
  const next = recordings.map(() => 0);

  function showUntil(seconds) {
    recordings.forEach((recording, which) => {
      const due = [];
      while (next[which] < recording.steps.length && recording.steps[next[which]].at <= seconds) due.push(...recording.steps[next[which]++].tokens);
      if (due.length) panes[which].add(due);
      const isDone = seconds >= recording.seconds;
      panes[which].show(Math.min(seconds, recording.seconds), isDone);
      panes[which].say(isDone ? "done" : "replay", isDone ? "done" : "replay");
    });
    chart.draw(seconds);
  }

  return new Promise((resolve) => {
    const last = Math.max(...recordings.map((recording) => recording.seconds));
    const started = performance.now();
    let isOver = false;
    const frame = () => {
      if (isOver) return;
      const seconds = STILL.matches || document.hidden || signal.aborted ? Infinity : (performance.now() - started) / 1000;
      showUntil(seconds);
      isOver = seconds >= last;
      if (isOver) resolve(); else requestAnimationFrame(frame);
    };
    if (document.hidden) frame(); else requestAnimationFrame(frame);
    document.addEventListener("visibilitychange", frame, { once: true, signal });
  });
}
