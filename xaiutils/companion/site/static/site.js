// One button per notebook opens or closes all its code cells.
addEventListener("DOMContentLoaded", () => {
  const cells = document.querySelectorAll("div.cell details.hide");
  const place = document.querySelector("article h1");
  if (!cells.length) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "show-code";
  button.textContent = "Show all code";
  button.addEventListener("click", () => {
    const open = button.textContent === "Show all code";
    cells.forEach((cell) => { cell.open = open; });
    button.textContent = open ? "Hide all code" : "Show all code";
  });
  place.after(button);
});
