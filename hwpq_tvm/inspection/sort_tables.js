"use strict";
// Headings become buttons that sort their table; without this script the tables stand in the order of the model.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => ({ row, cell: row.cells[column] }));
      const numeric = rows.some(({ cell }) => "value" in cell.dataset);
      rows.sort((first, second) => {
        const [a, b] = [first.cell, second.cell];
        if (!numeric) return (down ? -1 : 1) * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
        // Cells without a number come last in either order.
        const missing = !("value" in a.dataset) - !("value" in b.dataset);
        return missing || (down ? -1 : 1) * (Number(a.dataset.value) - Number(b.dataset.value));
      });
      body.append(...rows.map(({ row }) => row));
    });
  });
}
