// The four ways in which a token can come about. Each has a colour and an underline of its own (style.css).

export const KINDS = {
  accepted: { label: "Accepted", meaning: "A drafter guessed it, and the target agreed." },
  recovered: { label: "Recovered", meaning: "The guess was wrong here: the target put its own token in its place." },
  bonus: { label: "Bonus", meaning: "The draft was right to its end: the target added this one." },
  plain: { label: "Plain", meaning: "Nothing was guessed here: an ordinary step of the target." },
};

export function countKinds(tokens) {
  const counts = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, 0]));
  for (const token of tokens) counts[token.kind] += 1;
  return counts;
}
