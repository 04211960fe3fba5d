"use strict";
// Before anything is drawn: the theme that was chosen on another page.
(() => {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.style.colorScheme = chosen;
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      setTimeout(() => localStorage.setItem(
        "theme", document.documentElement.style.colorScheme));
    });
  });
})();
