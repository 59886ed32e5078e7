// Light, dark, or as the system has it. Not a module: it runs before the first paint, so that nothing flashes.
(() => {
  const KEY = "forerun.theme";
  const root = document.documentElement;
  let chosen = "auto";
  try { chosen = localStorage.getItem(KEY) ?? "auto"; } catch { /* storage is off: the system decides */ }

  function show(theme) {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
  }

  if (!["light", "dark"].includes(chosen)) chosen = "auto";
  show(chosen);
  document.addEventListener("DOMContentLoaded", () => {
    for (const input of document.querySelectorAll("input[name=theme]")) {
      input.checked = input.value === chosen;
      input.addEventListener("change", () => {
        show(input.value);
        try { localStorage.setItem(KEY, input.value); } catch { /* it holds until the page is closed */ }
      });
    }
  });
})();
