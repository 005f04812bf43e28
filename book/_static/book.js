// A table that scrolls is reached by the keyboard, as the theme arranges for code.
const sizes = new ResizeObserver((entries) => {
  for (const { target: table } of entries) {
    const scrolls = table.scrollWidth > table.clientWidth || table.scrollHeight > table.clientHeight;
    table.toggleAttribute("tabindex", scrolls);
    if (scrolls) table.tabIndex = 0;
  }
});
document.querySelectorAll(".bd-article table").forEach((table) => sizes.observe(table));

// The sidebar's arrow that opens the pages below another one has no words of its own.
document.querySelectorAll(".bd-sidebar-primary summary").forEach((arrow) => {
  arrow.setAttribute("aria-label", "Pages below");
});
