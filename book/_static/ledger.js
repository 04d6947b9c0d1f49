// The ledger's filters and order, and what falls with a claim in the graph.
// Without this script every row is there and opens; with it, rows can be found.
(() => {
  "use strict";

  function ledger() {
    const page = document.querySelector(".ledger-paper");
    if (!page) return;
    const rows = [...document.querySelectorAll(".ledger-row")];
    const lists = [...document.querySelectorAll(".ledger-rows")].map((list) => ({
      list,
      rows: [...list.querySelectorAll(".ledger-row")],
    }));
    const form = page.querySelector(".ledger-controls");
    const chips = [...page.querySelectorAll(".ledger-chips button")];
    const shown = page.querySelector(".ledger-shown");
    const field = (name) => form.querySelector(`[data-filter="${name}"]`);
    const ranks = (name) => [...field(name).options].map((option) => option.value);
    const order = {
      section: ranks("section"),
      kind: ranks("kind"),
      verdict: chips.map((chip) => chip.dataset.verdict),
    };
    const groupName = (key, row) =>
      key === "section" ? field("section").options[order.section.indexOf(row.dataset.section)].text : row.dataset[key];

    function filter() {
      const words = field("text").value.toLowerCase().split(/\s+/).filter(Boolean);
      const pressed = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true").map((chip) => chip.dataset.verdict);
      for (const row of rows) {
        const { text, section, kind, verdict } = row.dataset;
        row.hidden = !(
          words.every((word) => text.includes(word)) &&
          (!field("section").value || field("section").value === section) &&
          (!field("kind").value || field("kind").value === kind) &&
          (!pressed.length || pressed.includes(verdict))
        );
      }
      const papers = lists[0].rows;
      const left = papers.filter((row) => !row.hidden).length;
      shown.textContent = left === papers.length ? `${left} claims` : `${left} of ${papers.length} claims`;
      for (const group of document.querySelectorAll(".ledger-group")) {
        let next = group.nextElementSibling;
        while (next && !next.matches(".ledger-group") && next.hidden) next = next.nextElementSibling;
        group.hidden = !next || next.matches(".ledger-group");
      }
    }

    function sort() {
      const key = field("sort").value;
      document.querySelectorAll(".ledger-group").forEach((group) => group.remove());
      for (const { list, rows: own } of lists) {
        const place = (row) => (key === "order" ? 0 : order[key].indexOf(row.dataset[key]));
        const sorted = [...own].sort((a, b) => place(a) - place(b) || a.dataset.order - b.dataset.order);
        let last = null;
        for (const row of sorted) {
          if (key !== "order" && row.dataset[key] !== last) {
            last = row.dataset[key];
            const group = document.createElement("p");
            group.className = "ledger-group";
            group.textContent = groupName(key, row);
            list.append(group);
          }
          list.append(row);
        }
      }
      filter();
    }

    function press(chip, on) {
      chip.setAttribute("aria-pressed", String(on));
    }

    // A link to a row opens it, whatever the filters hide; a link to a verdict presses its chip.
    function follow() {
      const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (!target) return;
      if (target.matches(".ledger-row")) {
        if (target.hidden) form.reset();
        target.open = true;
        target.scrollIntoView({ block: "start" });
      } else if (chips.includes(target)) {
        chips.forEach((chip) => press(chip, chip === target));
        filter();
      }
    }

    chips.forEach((chip) => {
      chip.disabled = false;
      chip.addEventListener("click", () => {
        press(chip, chip.getAttribute("aria-pressed") !== "true");
        filter();
      });
    });
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => {
      chips.forEach((chip) => press(chip, false));
      setTimeout(sort);
    });
    field("sort").addEventListener("change", sort);
    window.addEventListener("hashchange", follow);
    filter();
    follow();
    // Formulas change the rows' heights, so a deep link is followed again once they are set.
    window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(follow));
  }

  function graph() {
    const svg = document.querySelector(".claim-graph");
    if (!svg) return;
    const nodes = [...svg.querySelectorAll(".node")];
    const edges = [...svg.querySelectorAll(".edge")];
    const said = document.querySelector(".claim-graph-said");
    const touch = window.matchMedia("(hover: none)");
    let lit = null;

    function show(node) {
      lit = node;
      svg.classList.toggle("lit", Boolean(node));
      const names = node ? new Set([node.dataset.claim, ...node.dataset.falls.split(" ").filter(Boolean)]) : new Set();
      for (const other of nodes) other.classList.toggle("falls", names.has(other.dataset.claim));
      for (const edge of edges) edge.classList.toggle("falls", names.has(edge.dataset.from) && names.has(edge.dataset.to));
      said.textContent = node ? node.querySelector("title").textContent : said.dataset.idle;
    }

    said.dataset.idle = touch.matches ? "Tap a claim to see what falls with it; tap again to open its row." : "Point at a claim to see what falls with it.";
    said.hidden = false;
    show(null);
    for (const node of nodes) {
      node.addEventListener("mouseenter", () => show(node));
      node.addEventListener("mouseleave", () => show(null));
      node.addEventListener("focus", () => show(node));
      node.addEventListener("blur", () => show(null));
      let pinned = false;
      node.addEventListener("pointerdown", () => { pinned = lit === node; });
      node.addEventListener("click", (event) => {
        // A finger cannot hover: its first tap lights the claim, its second follows the link.
        if (touch.matches && event.detail && !pinned) {
          event.preventDefault();
          show(node);
        }
      });
    }
  }

  function start() {
    ledger();
    graph();
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
