/* Little: htmx carries the form's token, a search stays in the address behind the #, which never leaves the browser. */
"use strict";
document.addEventListener("htmx:configRequest", (event) => {
  const token = document.querySelector("meta[name=csrf]");
  if (token) event.detail.headers["X-CSRF"] = token.content;
});
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 303 || event.detail.xhr.status === 403) location.reload();
});
document.addEventListener("DOMContentLoaded", () => {
  for (const field of document.querySelectorAll("[data-keep]")) {
    const kept = new URLSearchParams(location.hash.slice(1)).get(field.dataset.keep);
    if (kept) { field.value = kept; field.dispatchEvent(new Event("search", { bubbles: true })); }
    field.addEventListener("input", () => {
      const state = new URLSearchParams(location.hash.slice(1));
      if (field.value) state.set(field.dataset.keep, field.value); else state.delete(field.dataset.keep);
      history.replaceState(null, "", `${location.pathname}${location.search}${state.size ? "#" + state : ""}`);
    });
  }
  for (const form of document.querySelectorAll("form[data-once]"))
    form.addEventListener("submit", () => {  // after the form is sent: a disabled button says nothing in it
      setTimeout(() => { for (const button of form.querySelectorAll("button")) button.disabled = true; }, 0);
    });
});
/* a file is sent as it is, and what is said of it comes into the page */
document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-raw]");
  if (!form) return;
  event.preventDefault();
  const token = form.querySelector("[name=csrf]").value, file = form.querySelector("[type=file]").files[0];
  const answer = await fetch(form.dataset.raw, { method: "POST", body: file, headers: { "X-CSRF": token } });
  const into = document.getElementById(form.dataset.into), page = new DOMParser().parseFromString(await answer.text(), "text/html");
  into.replaceChildren(...(page.querySelector("main") || page.body).childNodes);
});
/* / goes to the search, j and k through the rows */
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { const field = document.querySelector("input[type=search]"); if (field) { field.focus(); event.preventDefault(); } }
  if (event.key !== "j" && event.key !== "k") return;
  const rows = [...document.querySelectorAll("table.rows tbody th a")];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(rows.length - 1, Math.max(0, at + (event.key === "j" ? 1 : -1)))].focus();
});
