"use strict";
// The form and the YAML beside it say the same: each change of one is sent, and the
// other follows what the server makes of it.
(() => {
  const form = document.getElementById("new");
  const yaml = document.getElementById("yaml");
  const fields = document.getElementById("fields");
  let turn = 0;

  const check = async (more = {}) => {
    const own = ++turn;
    const body = new URLSearchParams({ yaml: yaml.value, ...more });
    const answer = await fetch(form.dataset.check, { method: "POST", body });
    if (!answer.ok || own !== turn) return; // a later change is under way
    const told = await answer.json();
    if (more.key) yaml.value = told.yaml;
    document.getElementById("verdict").innerHTML = told.verdict;
    if (told.form === null) return; // no YAML, for now
    const focus = document.activeElement?.dataset?.key;
    const typed = focus && document.activeElement.value;
    const open = new Set([...fields.querySelectorAll("details[open]")].map(
      (one) => one.dataset.group));
    fields.innerHTML = told.form;
    for (const one of fields.querySelectorAll("details")) {
      if (open.has(one.dataset.group)) one.open = true;
    }
    if (focus) {
      const again = fields.querySelector(`[data-key="${CSS.escape(focus)}"]`);
      if (again) {
        if (again.tagName === "INPUT") again.value = typed;
        again.focus();
      }
    }
  };

  // A link to what is wrong goes to where it can be mended at once.
  document.getElementById("verdict").addEventListener("click", (event) => {
    const to = event.target.closest("a")?.getAttribute("href") ?? "#";
    const field = document.getElementById(to.slice(1));
    if (!field) return;
    event.preventDefault();
    const around = field.closest("details");
    if (around) around.open = true;
    field.scrollIntoView({ block: "center" });
    (field.querySelector("summary") ?? field).focus({ preventScroll: true });
  });

  fields.addEventListener("change", (event) => {
    const { key } = event.target.dataset;
    if (key) check({ key, value: event.target.value });
  });
  fields.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.tagName === "INPUT") {
      event.preventDefault(); // else it would start the run
      event.target.dispatchEvent(new Event("change", { bubbles: true }));
    }
  });
  let wait;
  yaml.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(check, 500);
  });
  document.getElementById("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) document.getElementById("theirs").value = await file.text();
  });
})();
