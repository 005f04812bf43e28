// The review grid. Plain JavaScript: no build step, nothing is fetched. The kernel decides and stores; this
// file shows one page of images, says which key was pressed, and warns when the kernel does not answer.

const FILTERS = {
  decision: ["Decision", ["open", "accepted", "rejected"]], check: ["Check", null], origin: ["Origin", null], prompt: ["Prompt", null],
};
const HELP = [
  ["← ↑ ↓ →", "move"], ["A", "accept"], ["R", "reject"], ["O", "reopen"], ["N", "note"], ["Z", "undo"],
  ["M", "mask"], ["Space", "look closer"], ["G", "remake"], ["[ ]", "page"],
];
const MARKS = { accepted: "✓", rejected: "✕", open: "" };

class Pictures { // object URLs of what is shown, freed when it no longer is
  constructor() { this.urls = []; }
  make(bytes, type) {
    const url = URL.createObjectURL(new Blob([bytes], { type }));
    this.urls.push(url);
    return url;
  }
  free() { this.urls.forEach((url) => URL.revokeObjectURL(url)); this.urls = []; }
}

function fillFrame(frame, pictures, drawn, name) { // picture, and the outline exactly over it
  frame.replaceChildren();
  if (drawn.problem) { makeElement("div", { className: "review-grid-problem", textContent: drawn.problem }, frame); return; }
  const stack = makeElement("div", { className: "review-grid-stack" }, frame);
  makeElement("img", { src: pictures.make(drawn.picture, "image/jpeg"), alt: name, draggable: false }, stack);
  if (drawn.outline.byteLength) {
    makeElement("img", { src: pictures.make(drawn.outline, "image/png"), alt: "", className: "review-grid-outline", draggable: false }, stack);
  }
}

function render({ model, el }) {
  const root = makeElement("div", { className: "review-grid", tabIndex: 0 }, el);
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves our keys to us
  root.setAttribute("role", "application");
  root.setAttribute("aria-label", "Review: arrow keys move, A accepts, R rejects, N writes a note, Z undoes");
  const bar = makeElement("div", { className: "review-grid-bar" }, root);
  const filters = makeElement("span", { className: "review-grid-group" }, bar);
  const counts = makeElement("span", { className: "review-grid-counts" }, bar);
  const pager = makeElement("span", { className: "review-grid-group" }, bar);
  const grid = makeElement("div", { className: "review-grid-cards" }, root);
  grid.setAttribute("role", "listbox");
  const detail = makeElement("div", { className: "review-grid-detail" }, root);
  const status = makeElement("div", { className: "review-grid-status" }, root);
  status.setAttribute("aria-live", "polite");
  const help = makeElement("div", { className: "review-grid-help" }, root);
  for (const [key, what] of HELP.filter(([key]) => key !== "G" || model.get("can_remake"))) {
    makeElement("kbd", { textContent: key }, help);
    makeElement("span", { textContent: what }, help);
  }
  const closer = makeElement("div", { className: "review-grid-closer", hidden: true }, root);
  const closerFrame = makeElement("div", { className: "review-grid-closer-frame" }, closer);
  const closerText = makeElement("div", { className: "review-grid-closer-text" }, closer);

  const thumbnails = new Pictures(), large = new Pictures(), pending = new Map();
  const view = Math.random().toString(36).slice(2); // several views may show one grid
  let selected = 0, sent = 0, wantsFirst = false, awaited = "", noteKey = "", places = [];
  const cards = () => model.get("cards");
  const current = () => cards()[selected];

  // --- talking to the kernel

  const say = (text, isProblem) => { status.textContent = text; status.classList.toggle("is-problem", isProblem); };
  const sayLate = () => {
    const names = [...new Set([...pending.values()].filter((ask) => ask.isChange).map((ask) => ask.image))];
    const lost = names.length ? ` Not stored: ${names.join(", ")}.` : "";
    say(`The notebook's kernel does not answer.${lost} When it is back, run the cell again: what is stored is kept.`, true);
  };
  const send = (content, card) => {
    const number = `${view}-${++sent}`, isChange = ["decide", "note"].includes(content.kind);
    pending.set(number, { isChange, image: card ? card.image : "", timer: setTimeout(sayLate, ANSWER_MS) });
    try { model.send({ ...content, number, key: card ? card.key : "" }); } catch { /* no kernel: the timer says so */ }
    return number;
  };
  const show = (state) => { awaited = send({ kind: "show", state }); }; // no key decides until that page is there
  const onMessage = (content, buffers) => {
    if (content.kind === "answer" && pending.has(content.number)) {
      clearTimeout(pending.get(content.number).timer);
      pending.delete(content.number);
      if (!pending.size) showMessage();
    }
    if (content.kind === "large" && !closer.hidden && current() && content.key === current().key) {
      large.free();
      fillFrame(closerFrame, large, { picture: buffers[0], outline: buffers[1], problem: content.problem }, content.key);
    }
  };

  // --- the bar

  const choose = (name, value) => {
    wantsFirst = true;
    show({ [name]: value, page: 0 });
  };
  const selects = {};
  for (const [name, [label]] of Object.entries(FILTERS)) {
    const place = makeElement("label", { textContent: `${label} ` }, filters);
    selects[name] = makeElement("select", {}, place);
    selects[name].setAttribute("aria-label", label);
    selects[name].addEventListener("change", () => { choose(name, selects[name].value); root.focus({ preventScroll: true }); });
  }
  const showFilters = () => {
    for (const [name, [, fixed]] of Object.entries(FILTERS)) {
      const words = fixed || model.get("choices")[name] || [];
      selects[name].replaceChildren(...["", ...words].map((word) => makeElement("option", { value: word, textContent: word || "all" })));
      selects[name].value = model.get(name);
      selects[name].parentElement.hidden = words.length < 2 && !model.get(name);
    }
  };
  makeButton(pager, "Refresh", "Refresh: read the pool again and apply the filters anew (U)", () => send({ kind: "refresh" }));
  makeButton(pager, "Undo", "Undo the last decision (Z)", () => send({ kind: "undo" }));
  const outlineButton = makeButton(pager, "Mask", "Mask: show or hide its outline (M)", () => {
    const isHidden = root.classList.toggle("hides-outlines");
    outlineButton.setAttribute("aria-pressed", !isHidden);
  });
  outlineButton.setAttribute("aria-pressed", true);
  const turn = (by, place = "first") => {
    const to = model.get("page") + by;
    if (awaited || to < 0 || to >= model.get("pages")) return;
    wantsFirst = place === "first";
    if (place === "last") selected = Infinity;
    show({ page: to });
  };
  const before = makeButton(pager, "◀", "Previous page ( [ )", () => turn(-1));
  const pageText = makeElement("span", { className: "review-grid-page" }, pager);
  const after = makeButton(pager, "▶", "Next page ( ] )", () => turn(1));
  const showCounts = () => {
    const { open = 0, accepted = 0, rejected = 0 } = model.get("counts");
    counts.replaceChildren();
    for (const [word, count] of [["accepted", accepted], ["rejected", rejected], ["open", open]]) {
      makeElement("span", { className: `is-${word}`, textContent: `${count} ${word}` }, counts);
    }
    const page = model.get("page"), pages = model.get("pages");
    pageText.textContent = `${page + 1} / ${pages} · ${model.get("found")} images`;
    before.disabled = page === 0;
    after.disabled = page >= pages - 1;
  };

  // --- cards

  const buildCards = () => {
    thumbnails.free();
    const drawn = model.get("thumbnails"), shown = cards();
    root.style.setProperty("--picture-height", `${model.get("picture_height")}px`);
    places = shown.map((card, index) => {
      const place = makeElement("div", { className: "review-grid-card" });
      place.setAttribute("role", "option");
      place.dataset.image = card.image;
      const frame = makeElement("div", { className: "review-grid-frame" }, place);
      if (drawn[card.key]) fillFrame(frame, thumbnails, drawn[card.key], card.image);
      const mark = makeElement("div", { className: "review-grid-mark" }, frame);
      const line = makeElement("div", { className: "review-grid-line" }, place);
      makeElement("span", { className: "review-grid-name", textContent: card.image.split("/").pop().replace(/\.\w+$/, ""), title: card.image }, line);
      if (card.check === "failed") makeElement("span", { className: "review-grid-check", textContent: "!", title: `failed its check: ${card.reason}` }, line);
      const choice = makeElement("div", { className: "review-grid-choice" }, place);
      const accept = makeButton(choice, "✓", `Accept ${card.image} (A)`, () => decideAt(index, true));
      const reject = makeButton(choice, "✕", `Reject ${card.image} (R)`, () => decideAt(index, false));
      const note = makeElement("div", { className: "review-grid-note" }, place);
      for (const button of [accept, reject]) button.tabIndex = -1;
      place.addEventListener("click", (event) => { if (!event.target.closest("button")) { select(index); root.focus({ preventScroll: true }); } });
      place.addEventListener("dblclick", (event) => { if (!event.target.closest("button")) openCloser(); });
      return { place, mark, accept, reject, note };
    });
    grid.replaceChildren(...places.map(({ place }) => place));
    if (!shown.length) makeElement("div", { className: "review-grid-empty", textContent: "No image matches these filters." }, grid);
    if (wantsFirst) selected = 0;
    wantsFirst = false;
    updateCards();
  };
  const updateCards = () => {
    const shown = cards();
    if (shown.length !== places.length) return; // the pictures of another page are on their way
    selected = Math.max(0, Math.min(selected, shown.length - 1));
    shown.forEach((card, index) => {
      const { place, mark, accept, reject, note } = places[index];
      place.dataset.decision = card.decision;
      place.setAttribute("aria-selected", index === selected);
      place.setAttribute("aria-label", `${card.image}, ${card.decision}${card.check === "failed" ? ", failed its check" : ""}${card.note ? `, note: ${card.note}` : ""}`);
      mark.textContent = MARKS[card.decision];
      accept.setAttribute("aria-pressed", card.decision === "accepted");
      reject.setAttribute("aria-pressed", card.decision === "rejected");
      note.textContent = card.unstored ? "not stored" : card.note;
      note.title = card.unstored || card.note;
      note.classList.toggle("is-rejected", Boolean(card.unstored));
    });
    showDetail();
  };
  const select = (index) => {
    selected = index;
    updateCards();
    if (places[selected]) places[selected].place.scrollIntoView({ block: "nearest" });
    if (!closer.hidden) openCloser();
  };
  const columns = () => {
    const tops = places.map(({ place }) => place.offsetTop);
    return Math.max(1, tops.filter((top) => top === tops[0]).length);
  };
  const move = (by) => {
    const to = selected + by, step = Math.abs(by) === 1;
    if (to >= 0 && to < places.length) select(to);
    else if (step && by > 0) turn(1);
    else if (step && by < 0) turn(-1, "last");
  };
  const decideAt = (index, accepted) => { select(index); root.focus({ preventScroll: true }); decide(accepted); };
  const decide = (accepted) => {
    const card = current();
    if (!card || awaited) return;
    send({ kind: "decide", accepted }, card);
    if (accepted !== null) move(1);
  };

  // --- the selected image: words and note

  const about = makeElement("div", { className: "review-grid-about" }, detail);
  const noteLabel = makeElement("label", { textContent: "Note " }, detail);
  const noteInput = makeElement("input", { type: "text", placeholder: "why, for later readers (N)" }, noteLabel);
  const saveNote = () => {
    const card = cards().find(({ key }) => key === noteKey);
    if (card && noteInput.value !== card.note) send({ kind: "note", note: noteInput.value }, card);
  };
  const showDetail = () => {
    const card = current();
    detail.hidden = !card;
    if (!card) return;
    about.replaceChildren();
    makeElement("b", { textContent: card.image }, about);
    makeElement("span", { className: `is-${card.decision}`, textContent: card.decision }, about);
    makeElement("span", { textContent: card.origin }, about);
    if (card.prompt) makeElement("span", { textContent: `“${card.prompt}”` }, about);
    if (card.check === "failed") makeElement("span", { className: "is-rejected", textContent: `failed its check${card.reason ? `: ${card.reason}` : ""}` }, about);
    if (card.unstored) makeElement("span", { className: "is-rejected", textContent: card.unstored }, about);
    if (document.activeElement !== noteInput) { noteKey = card.key; noteInput.value = card.note; }
  };
  noteInput.addEventListener("blur", () => { saveNote(); setTimeout(showDetail); });
  noteInput.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { const card = current(); noteInput.value = card ? card.note : ""; }
    if (event.key === "Escape" || event.key === "Enter") { event.preventDefault(); root.focus({ preventScroll: true }); }
    event.stopPropagation();
  });

  // --- a closer look

  const openCloser = () => {
    const card = current();
    if (!card) return;
    closer.hidden = false;
    closerText.textContent = `${card.image} · ${card.decision} · Space or Escape closes, A accepts, R rejects, arrows go on`;
    closerFrame.replaceChildren();
    send({ kind: "look" }, card);
  };
  const closeCloser = () => { closer.hidden = true; large.free(); closerFrame.replaceChildren(); };
  closer.addEventListener("click", closeCloser);

  const keys = {
    ArrowLeft: () => move(-1), ArrowRight: () => move(1), ArrowUp: () => move(-columns()), ArrowDown: () => move(columns()),
    Home: () => select(0), End: () => select(places.length - 1), "[": () => turn(-1), "]": () => turn(1),
    PageUp: () => turn(-1), PageDown: () => turn(1),
    a: () => decide(true), r: () => decide(false), o: () => decide(null), z: () => send({ kind: "undo" }), u: () => send({ kind: "refresh" }),
    g: () => { if (current()) send({ kind: "remake" }, current()); },
    m: () => outlineButton.click(), n: () => { if (current()) { noteInput.focus(); noteInput.select(); } },
    " ": () => (closer.hidden ? openCloser() : closeCloser()), Escape: closeCloser,
  };
  root.addEventListener("keydown", (event) => {
    const isControl = ["SELECT", "BUTTON"].includes(event.target.tagName);
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.target.tagName === "SELECT" || (isControl && [" ", "Enter"].includes(key))) return;
    const isUndo = (event.ctrlKey || event.metaKey) && key === "z";
    if ((!isUndo && (event.ctrlKey || event.metaKey || event.altKey)) || !keys[key]) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat || key.startsWith("Arrow")) keys[key]();
  });

  const showMessage = () => say(model.get("message") || model.get("title"), model.get("message") !== "" && model.get("is_problem"));
  const onShown = () => { if (model.get("shown") === awaited) awaited = ""; };
  const listeners = {
    "change:shown": onShown, "change:picture_height": buildCards,
    "change:thumbnails": buildCards, "change:cards": updateCards, "change:choices": showFilters, "change:message": showMessage,
    "change:is_problem": showMessage, "change:counts": showCounts, "change:page": showCounts, "change:pages": showCounts,
    "change:found": showCounts, "msg:custom": onMessage,
  };
  for (const name of Object.keys(FILTERS)) listeners[`change:${name}`] = showFilters;
  for (const [event, act] of Object.entries(listeners)) model.on(event, act);
  showFilters();
  showCounts();
  buildCards();
  showMessage();
  return () => {
    for (const [event, act] of Object.entries(listeners)) model.off(event, act);
    for (const { timer } of pending.values()) clearTimeout(timer);
    thumbnails.free();
    large.free();
  };
}

export default { render };
