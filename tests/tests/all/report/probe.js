"use strict";
// Looks at the page as it is laid out, presses every heading twice, and sends what it saw to the page around it.
(() => {
  const SLACK = 1;
  const shown = (text) => text.trim().slice(0, 60);
  const root = document.documentElement;

  // Every piece of text with the rectangles that it is drawn in.
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const element = node.parentElement;
    if (node.data.trim() === "" || element.closest("script, style, title")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    texts.push({ text: shown(node.data), element, rects: [...range.getClientRects()] });
  }

  // What text must stay inside: its picture, its cell, or its block.
  const container = (element) => {
    const own = element.closest("svg, td, th");
    if (own !== null) return own;
    while (getComputedStyle(element).display === "inline") element = element.parentElement;
    return element;
  };
  const overflowing = [];
  for (const { text, element, rects } of texts) {
    const outer = container(element);
    const box = outer.getBoundingClientRect();
    const scrolls = element.closest(".scroll") !== null;
    for (const rect of rects) {
      const leaves = rect.left < box.left - SLACK || rect.right > box.right + SLACK;
      const leavesPicture = outer.tagName === "svg" && (rect.top < box.top - SLACK || rect.bottom > box.bottom + SLACK);
      const leavesWindow = !scrolls && (rect.left < -SLACK || rect.right > root.clientWidth + SLACK);
      if (leaves || leavesPicture || leavesWindow) overflowing.push(text);
    }
  }
  if (root.scrollWidth > root.clientWidth) overflowing.push(`the page: ${root.scrollWidth} of ${root.clientWidth}`);

  // Words of a picture over one another.
  const overlapping = [];
  const labels = [];
  for (const svg of document.querySelectorAll("svg")) {
    const inside = texts.filter(({ element }) => element.closest("svg") === svg);
    const boxes = inside.map(({ text, element }) => [text, element.getBoundingClientRect()]);
    labels.push(...boxes.map(([, box]) => box.height));
    for (const [i, [text, a]] of boxes.entries()) {
      for (const [other, b] of boxes.slice(i + 1)) {
        const apart = a.right <= b.left + SLACK || b.right <= a.left + SLACK || a.bottom <= b.top + 3 || b.bottom <= a.top + 3;
        if (!apart) overlapping.push(`${text} / ${other}`);
      }
    }
  }

  // Every cell with a number, and the words that tell its row from others.
  const cells = [];
  for (const table of document.querySelectorAll("table")) {
    for (const row of table.tBodies[0].rows) {
      const said = (name) => row.querySelector(`[data-name="${name}"]`)?.textContent.trim();
      const context = row.querySelector('[data-name="context"]').dataset.value;
      const { task, fingerprint } = table.dataset;
      for (const { dataset } of row.cells) {
        if (dataset.value === undefined) continue;
        const { name, value, low = null, high = null } = dataset;
        cells.push({ task, fingerprint, engine: said("engine"), cache: said("cache"), context, name, value, low, high });
      }
    }
  }

  // Each column, sorted both ways.
  const sorts = [];
  for (const table of document.querySelectorAll("table")) {
    for (const [place, heading] of [...table.tHead.rows[0].cells].entries()) {
      const button = heading.querySelector("button");
      for (const expected of ["ascending", "descending"]) {
        button.focus();
        button.click();
        const column = [...table.tBodies[0].rows].map((row) => row.cells[place]);
        sorts.push({
          heading: button.textContent,
          expected,
          stated: heading.getAttribute("aria-sort"),
          others: [...table.tHead.rows[0].cells].filter((cell) => cell.getAttribute("aria-sort") !== "none").length,
          is_focused: document.activeElement === button,
          values: column.map((cell) => cell.dataset.value ?? null),
          texts: column.map((cell) => cell.textContent.trim()),
        });
      }
    }
  }

  const untitled = [...document.querySelectorAll("figure > svg")].filter((svg) => {
    return svg.getAttribute("role") !== "img" || !svg.querySelector("title")?.textContent.trim();
  });
  const found = {
    width: window.innerWidth,
    num_texts: texts.length,
    overflowing,
    overlapping,
    smallest_label: Math.min(...labels),
    cells,
    sorts,
    num_charts: document.querySelectorAll("figure > svg").length,
    num_untitled: untitled.length,
    headings: [...document.querySelectorAll("h2")].map((heading) => heading.textContent),
  };
  parent.postMessage(encodeURIComponent(JSON.stringify(found)), "*");
})();
