// What a model writes, made visible: characters that show nothing, or that would turn the text around them, appear as symbols.

// Zero-width characters, directional controls, line and paragraph separators, the byte-order mark, invisible operators and tags.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

export function visible(text) {
  return text.replace(HIDDEN, symbol);
}

// The same for one line: newlines and tabs as symbols too, and spaces as open boxes.
export function visibleInline(text) {
  return visible(text).replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣");
}

function symbol(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  if (code === 0x7f) return "␡";
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}
