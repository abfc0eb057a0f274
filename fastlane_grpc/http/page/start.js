// Loads the page again if one of its files did not arrive. Chromium gives up what it loads when the network changes,
// and on the machine of a server each container that starts is such a change.

(() => {
  const KEY = "fastlane.loads";
  const MAX_LOADS = 5;
  addEventListener("error", (event) => {
    const element = event.target;
    if (!(element instanceof HTMLScriptElement) && !(element instanceof HTMLLinkElement && element.rel === "stylesheet")) return;
    const loads = Number(sessionStorage.getItem(KEY) ?? 0) + 1;
    if (loads > MAX_LOADS) return;
    sessionStorage.setItem(KEY, String(loads));
    setTimeout(() => location.reload(), 100 * 2 ** loads);
  }, true);
  addEventListener("load", () => {
    if (document.documentElement.dataset.started) sessionStorage.removeItem(KEY);
  });
})();
