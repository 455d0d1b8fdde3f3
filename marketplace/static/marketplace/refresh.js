// Keeps parts of a page up to date. An element with data-refresh names the address that has them; each part with
// data-part is replaced where it changed, but not while the focus is in it. A new data-state loads the page again, since
// its buttons are others then. Rests while nobody looks.
"use strict";
(() => {
  const SECONDS = 2;
  let timer = 0;

  const place = () => document.querySelector("[data-refresh]");

  function show(fetched) {
    const fresh = fetched.querySelector("[data-state]");
    if (!fresh || fresh.dataset.state !== place().querySelector("[data-state]").dataset.state) {
      window.location.reload();
      return false;
    }
    for (const part of place().querySelectorAll("[data-part]")) {
      const other = fetched.querySelector(`[data-part="${part.dataset.part}"]`);
      if (other && other.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
        part.innerHTML = other.innerHTML;
      }
    }
    return fresh.dataset.over !== "yes";
  }

  async function refresh() {
    let goesOn = true;
    try {
      const answer = await fetch(place().dataset.refresh, { redirect: "error" });
      // Signed out, or no longer allowed: a person has to look.
      goesOn = answer.ok && show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The server does not answer at the moment.
    }
    timer = goesOn ? window.setTimeout(refresh, SECONDS * 1000) : 0;
  }

  document.addEventListener("DOMContentLoaded", () => {
    if (!place() || place().querySelector("[data-over=yes]")) return;
    timer = window.setTimeout(refresh, SECONDS * 1000);
    document.addEventListener("visibilitychange", () => {
      window.clearTimeout(timer);
      if (!document.hidden && timer) refresh();
    });
  });
})();
