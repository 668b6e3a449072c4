"use strict";
// Sorts a table by the column whose heading is pressed; pressed again, the other way round. Rows of equal cells keep
// their order, and cells without a number come last both ways.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const place = heading.cellIndex;
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentElement.children) {
      other.setAttribute("aria-sort", other === heading ? direction : "none");
    }
    const sign = direction === "ascending" ? 1 : -1;
    const key = (row) => {
      const { textContent, dataset } = row.cells[place];
      if (dataset.value === undefined) return textContent;
      const number = Number(dataset.value.replace(/^(-?)inf$/, "$1Infinity"));
      return Number.isNaN(number) ? "" : number;
    };
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
    };
    const body = heading.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort((a, b) => compare(a[0], b[0]));
    body.append(...rows.map(([, row]) => row));
  });
}
