// Keeps a transfer's page true by itself: asks every few seconds whether anything is shown otherwise now, and only then
// fetches the page again and puts its content in place of the old one. Rests while the page is hidden.
"use strict";
(() => {
  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const AFTER_TROUBLE = 10;
  let timer = 0;
  let isAsking = false;

  const card = () => document.getElementById("why");

  // As marketplace/explain/words.py writes it.
  function span(seconds) {
    let left = Math.max(Math.round(seconds), 0);
    const parts = [];
    for (const [name, length] of UNITS) {
      const number = Math.floor(left / length);
      left -= number * length;
      if (number || parts.length) parts.push([number, name]);
    }
    return parts.slice(0, 2).filter(([number]) => number).map(([number, name]) => `${number} ${name}`).join(" ") || "0 s";
  }

  function tick() {
    for (const time of document.querySelectorAll("time[data-relative]")) {
      const distance = (Date.parse(time.dateTime) - Date.now()) / 1000;
      const passed = time.dataset.relative === "for" ? `for ${span(-distance)}` : `${span(-distance)} ago`;
      const text = distance > 0 ? `in ${span(distance)}` : passed;
      if (time.textContent !== text) time.textContent = text;
    }
  }

  // On a narrow screen the state may lie outside of what is seen.
  function show() {
    const state = document.querySelector(".why-picture .now");
    if (!state) return;
    const view = state.closest(".why-picture");
    const [inside, outside] = [state.getBoundingClientRect(), view.getBoundingClientRect()];
    view.scrollLeft += inside.left + inside.width / 2 - outside.left - outside.width / 2;
  }

  function tell(text) {
    const live = document.getElementById("why-live");
    if (!live) return;
    live.textContent = text;
    live.hidden = !text;
  }

  function swap(fetched) {
    const old = document.getElementById("content-main");
    const fresh = fetched.getElementById("content-main");
    if (!old || !fresh || !fetched.getElementById("why")) {
      window.location.reload();
      return;
    }
    const focused = document.activeElement && old.contains(document.activeElement) ? document.activeElement.id : "";
    const opened = [...old.querySelectorAll("details[open][id]")].map((each) => each.id);
    // It stays in place, for a reader that listens to it.
    const news = document.getElementById("why-news");
    const before = document.getElementById("why-cause").textContent;
    fresh.querySelector("#why-news").replaceWith(news);
    old.replaceWith(fresh);
    for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
    if (focused) document.getElementById(focused)?.focus();
    show();
    const cause = document.getElementById("why-cause").textContent;
    if (cause !== before) news.textContent = cause;
  }

  async function ask() {
    if (isAsking || !card()) return;
    isAsking = true;
    let next = AFTER_TROUBLE;
    try {
      const shown = card().dataset;
      const answer = await fetch(shown.poll, { headers: { Accept: "application/json" }, redirect: "manual" });
      if (answer.ok) {
        const news = await answer.json();
        if (news.version !== shown.version) {
          const page = await fetch(window.location.href, { redirect: "manual" });
          if (page.ok) swap(new DOMParser().parseFromString(await page.text(), "text/html"));
        }
        next = news.seconds;
        tell(next ? "updates by itself" : "");
      } else {
        // Signed out, or no longer allowed: a person has to look.
        next = 0;
        tell("no longer updated: reload the page");
      }
    } catch {
      tell("the server does not answer; tried again");
    }
    isAsking = false;
    tick();
    plan(next);
  }

  function plan(seconds) {
    window.clearTimeout(timer);
    if (seconds && !document.hidden) timer = window.setTimeout(ask, seconds * 1000);
  }

  function begin() {
    if (!card()) return;
    const seconds = Number(card().dataset.seconds);
    if (seconds) tell("updates by itself");
    window.setInterval(() => document.hidden || tick(), 1000);
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) window.clearTimeout(timer);
      else if (Number(card().dataset.seconds)) ask();
    });
    show();
    plan(seconds);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
