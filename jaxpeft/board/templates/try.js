"use strict";
// A conversation with each side of the page, whose answers come in pieces.
(() => {
  const form = document.getElementById("talk");
  const text = document.getElementById("text");
  const halt = document.getElementById("halt");
  const sides = [...document.querySelectorAll(".side-talk")].map(
    (element) => ({ element, log: element.querySelector(".said"), messages: [] }));
  let going = null;

  const bubble = (side, kind, content = "") => {
    const made = document.createElement("pre");
    made.className = kind;
    made.textContent = content;
    side.log.append(made);
    made.scrollIntoView({ block: "nearest" });
    return made;
  };

  const answer = async (side, fields, signal) => {
    const question = fields.get("text");
    bubble(side, "user", question);
    const shown = bubble(side, "assistant waits");
    let said = "", wrong = "";
    const take = (part) => {
      if (part.status) shown.dataset.status = part.status;
      if (part.error) wrong = part.error;
      if (part.piece) {
        said += part.piece;
        shown.textContent = said;
        delete shown.dataset.status;
      }
    };
    try {
      const body = new URLSearchParams(fields);
      body.set("run", side.element.dataset.run);
      body.set("base", side.element.dataset.base);
      body.set("messages", JSON.stringify(side.messages));
      const found = await fetch(form.action, { method: "POST", body, signal });
      if (!found.ok) throw new Error(`the board answered ${found.status}`);
      const reader = found.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        const lines = (rest + (value ?? "")).split("\n");
        rest = lines.pop();
        lines.filter(Boolean).forEach((line) => take(JSON.parse(line)));
        if (done) break;
      }
    } catch (error) {
      if (error.name !== "AbortError") wrong = String(error.message);
    }
    shown.classList.remove("waits");
    delete shown.dataset.status;
    if (wrong) bubble(side, "fault", wrong);
    else {
      side.messages.push({ role: "user", content: question },
                         { role: "assistant", content: said });
    }
    if (!said) shown.remove();
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (going || !text.value.trim()) return;
    going = new AbortController();
    halt.disabled = false;
    const fields = new FormData(form);
    text.value = "";
    await Promise.all(sides.map((side) => answer(side, fields, going.signal)));
    going = null;
    halt.disabled = true;
    text.focus();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  halt.addEventListener("click", () => going?.abort());
  document.getElementById("anew").addEventListener("click", () => {
    going?.abort();
    for (const side of sides) {
      side.messages = [];
      side.log.replaceChildren();
    }
  });
})();
