"use strict";
// Keeps a page as its server sees things now. All HTML comes from there, escaped.
(() => {
  const byId = (id) => document.getElementById(id);

  // The rows that have all words of the filter.
  const words = byId("words");
  const filter = () => {
    if (!words) return;
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...document.querySelectorAll(".runs tbody tr")];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    byId("count").textContent = `${shown} of ${rows.length}`;
    byId("none").hidden = rows.length > 0;
    byId("no-hit").hidden = shown > 0 || !rows.length;
  };
  words?.addEventListener("input", filter);

  const group = (key) => {
    const there = byId(`group-${key}`);
    if (there) return there;
    const made = document.createElement("tbody");
    made.id = `group-${key}`;
    made.className = "sweep";
    made.setAttribute("role", "rowgroup");
    byId("group-").after(made); // what is new stands above
    return made;
  };

  const rows = (changed) => {
    for (const { id, group: key, html } of changed) {
      const holder = document.createElement("tbody");
      holder.innerHTML = html;
      const [row] = holder.children;
      const there = byId(id);
      const focused = there?.contains(document.activeElement);
      const mark = row.querySelector("input");
      mark.checked = there?.querySelector("input")?.checked ?? false;
      if (there) there.replaceWith(row);
      else if (id === key || !key) group(key).prepend(row);
      else group(key).append(row);
      if (focused) row.querySelector("a").focus();
    }
    filter();
  };

  const keys = (known) => {
    const all = new Set(known);
    for (const row of document.querySelectorAll(".runs tbody tr")) {
      if (!all.has(row.id)) row.remove();
    }
    filter();
  };

  // How long ago a row's run changed, by the server's clock, as `pages.ago` has it.
  const ahead = Date.now() / 1000 - document.body.dataset.now;
  const ago = (seconds) => {
    for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (seconds >= 2 * length) return `${Math.round(seconds / length)} ${unit}`;
    }
    return `${Math.round(Math.max(0, seconds))} s`;
  };
  setInterval(() => {
    for (const cell of document.querySelectorAll("[data-at]")) {
      cell.textContent = ago(Date.now() / 1000 - ahead - cell.dataset.at);
    }
  }, 5000);

  // A part of the page that is slow to make comes after the page.
  const load = async (section) => {
    section.setAttribute("aria-busy", "true");
    try {
      // No page of another origin can set the header.
      const headers = { "x-board-page": "1" };
      const answer = await fetch(section.dataset.from, { headers });
      if (answer.ok) section.innerHTML = await answer.text();
      else if (answer.status === 503) return again(section); // busy: it asks again
    } catch { /* the board has ended; `live` says so */ }
    section.removeAttribute("aria-busy");
  };
  const later = new Map();
  const again = (section) => {
    if (later.has(section)) return;
    const wait = setTimeout(() => {
      later.delete(section);
      load(section);
    }, 5000);
    later.set(section, wait);
  };
  document.querySelectorAll("[data-from]").forEach(load);

  // A log that has grown keeps its place, and says only what is new to who hears it.
  const grown = (part, html) => {
    const made = document.createElement("template");
    made.innerHTML = html;
    const [old, now] = [part, made.content].map((one) => one.querySelector("pre.log"));
    if (!now || !old || !now.textContent.startsWith(old.textContent)) return false;
    const atEnd = old.scrollHeight - old.scrollTop - old.clientHeight < 20;
    const more = now.textContent.slice(old.textContent.length);
    if (more) old.append(more);
    if (atEnd) old.scrollTop = old.scrollHeight;
    const [before, after] = [part, made.content].map((one) => one.querySelector(".remark"));
    if (before && after) before.replaceWith(after);
    return true;
  };

  // What has the focus is not taken away: its part waits until the focus leaves it.
  const waiting = new Map();
  const parts = (changed) => {
    for (const [id, html] of Object.entries(changed)) {
      const part = byId(id);
      waiting.delete(id);
      if (!part || grown(part, html)) continue;
      if (part.contains(document.activeElement)) {
        waiting.set(id, html);
        continue;
      }
      part.innerHTML = html;
      part.querySelectorAll("[data-end]").forEach((one) => {
        one.scrollTop = one.scrollHeight;
      });
    }
  };
  const catchUp = () => parts(Object.fromEntries(waiting));
  document.addEventListener("focusout", () => setTimeout(catchUp)); // when it is elsewhere
  setInterval(catchUp, 1000); // a window behind others hears nothing of its focus

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = byId(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(text); // not over plain http from elsewhere
      }
    });
  }

  let drawn = 0;
  const charts = (data) => {
    document.dispatchEvent(new CustomEvent("charts", { detail: data }));
    if (drawn++) document.querySelectorAll("[data-again=charts]").forEach(again);
  };

  const address = document.body.dataset.events;
  if (!address) return;
  const live = byId("live");
  let source = null;
  const follow = () => {
    source = new EventSource(address);
    source.onopen = () => {
      live.textContent = "live";
      live.className = "live on";
    };
    source.onerror = () => {
      live.textContent = "the board does not answer";
      live.className = "live off";
    };
    for (const [name, take] of Object.entries({ rows, keys, parts, charts })) {
      source.addEventListener(name, (event) => take(JSON.parse(event.data)));
    }
  };
  // A page that nobody sees holds none of the few connections that a browser has.
  document.addEventListener("visibilitychange", () => {
    source?.close();
    source = null;
    if (!document.hidden) follow();
  });
  if (!document.hidden) follow();
})();
