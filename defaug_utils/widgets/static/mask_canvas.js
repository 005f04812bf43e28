// Mask drawing over an image. Plain JavaScript: no build step, nothing is fetched.
//
// The pixel rule. A pointer position counts as the image pixel that it lies in. A stroke of the (odd)
// brush size sets every pixel whose centre is at most size / 2 from the segment between two such pixels;
// a rectangle sets all pixels from corner to corner, both included; a polygon sets the pixels whose
// centre is inside (even-odd) and those of its outline at brush size 1; a fill sets the pixels that are
// connected by their sides and of the same value. All sums are of whole numbers: nothing is rounded, and
// every pixel of the mask is exactly 0 or 255.

const TOOLS = {
  brush: ["Brush", "Brush (B); the right button erases with any tool", "b"], eraser: ["Eraser", "Eraser (E)", "e"],
  line: ["Line", "Line (L)", "l"], rectangle: ["Rectangle", "Rectangle (R)", "r"],
  polygon: ["Polygon", "Polygon (P): Enter or a double click closes it", "p"], fill: ["Fill", "Fill (F)", "f"],
  move: ["Move", "Move the view (M), or the middle button", "m"],
};
const MAX_UNDO_BYTES = 256 * 2 ** 20;
const MAX_BRUSH = 255;
// Masks that no kernel has confirmed, while the page lives; each widget loads this file as a module of its own.
const strokesAtRisk = (globalThis.maskCanvasStrokesAtRisk ??= new Map());

// --- rasters: {width, height, pixels: Uint8Array of 0 | 1}; every function returns the box it may have changed

const emptyBox = () => ({ x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity });
const joinBoxes = (a, b) => ({
  x0: Math.min(a.x0, b.x0), y0: Math.min(a.y0, b.y0), x1: Math.max(a.x1, b.x1), y1: Math.max(a.y1, b.y1),
});
const clipBox = (box, raster) => ({
  x0: Math.max(0, box.x0), y0: Math.max(0, box.y0),
  x1: Math.min(raster.width - 1, box.x1), y1: Math.min(raster.height - 1, box.y1),
});
const isEmpty = (box) => box.x1 < box.x0 || box.y1 < box.y0;

export function paintSegment(raster, from, to, size, value) {
  const radius = Math.ceil(size / 2), dx = to.x - from.x, dy = to.y - from.y, length2 = dx * dx + dy * dy;
  const box = clipBox({
    x0: Math.min(from.x, to.x) - radius, y0: Math.min(from.y, to.y) - radius,
    x1: Math.max(from.x, to.x) + radius, y1: Math.max(from.y, to.y) + radius,
  }, raster);
  const size2 = size * size;
  for (let y = box.y0; y <= box.y1; y++) {
    for (let x = box.x0; x <= box.x1; x++) {
      const px = x - from.x, py = y - from.y, along = px * dx + py * dy, cross = px * dy - py * dx;
      const qx = x - to.x, qy = y - to.y;
      const isHit = along <= 0 ? 4 * (px * px + py * py) <= size2
        : along >= length2 ? 4 * (qx * qx + qy * qy) <= size2 : 4 * cross * cross <= size2 * length2;
      if (isHit) raster.pixels[y * raster.width + x] = value;
    }
  }
  return box;
}

export function paintRectangle(raster, from, to, value) {
  const box = clipBox({
    x0: Math.min(from.x, to.x), y0: Math.min(from.y, to.y), x1: Math.max(from.x, to.x), y1: Math.max(from.y, to.y),
  }, raster);
  for (let y = box.y0; y <= box.y1; y++) {
    if (box.x1 >= box.x0) raster.pixels.fill(value, y * raster.width + box.x0, y * raster.width + box.x1 + 1);
  }
  return box;
}

export function paintPolygon(raster, points, value) {
  let box = emptyBox();
  points.forEach((point, k) => {
    box = joinBoxes(box, paintSegment(raster, point, points[(k + 1) % points.length], 1, value));
  });
  for (let y = Math.max(0, box.y0); y <= Math.min(raster.height - 1, box.y1); y++) {
    for (let x = box.x0; x <= box.x1; x++) {
      if (isInside(points, x, y)) raster.pixels[y * raster.width + x] = value;
    }
  }
  return box;
}

function isInside(points, x, y) {
  let inside = false;
  points.forEach((a, k) => {
    const b = points[(k + 1) % points.length];
    if (a.y > y === b.y > y) return;
    const turn = (x - a.x) * (b.y - a.y) - (y - a.y) * (b.x - a.x);
    if (b.y > a.y ? turn < 0 : turn > 0) inside = !inside;
  });
  return inside;
}

export function paintFill(raster, start, value) {
  const { width, height, pixels } = raster;
  const box = emptyBox();
  if (start.x < 0 || start.y < 0 || start.x >= width || start.y >= height) return box;
  const old = pixels[start.y * width + start.x];
  if (old === value) return box;
  const stack = [start.y * width + start.x];
  while (stack.length) {
    const index = stack.pop();
    if (pixels[index] !== old) continue;
    const row = index - (index % width);
    let left = index, right = index;
    while (left > row && pixels[left - 1] === old) left--;
    while (right < row + width - 1 && pixels[right + 1] === old) right++;
    pixels.fill(value, left, right + 1);
    const y = row / width;
    Object.assign(box, joinBoxes(box, { x0: left - row, y0: y, x1: right - row, y1: y }));
    for (const next of [left - width, left + width]) {
      if (next < 0 || next >= width * height) continue;
      let isRun = false;
      for (let k = next; k <= next + right - left; k++) {
        if (pixels[k] === old && !isRun) stack.push(k);
        isRun = pixels[k] === old;
      }
    }
  }
  return box;
}

export function packMask(pixels, imageNumber) {
  const packed = new Uint8Array(4 + Math.ceil(pixels.length / 8));
  new DataView(packed.buffer).setUint32(0, imageNumber, true);
  for (let k = 0; k < pixels.length; k++) if (pixels[k]) packed[4 + (k >> 3)] |= 128 >> (k & 7);
  return packed;
}

export function unpackMask(packed, count) {
  const pixels = new Uint8Array(count);
  for (let k = 0; k < count; k++) pixels[k] = (packed[4 + (k >> 3)] >> (7 - (k & 7))) & 1;
  return pixels;
}

const asBytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const haveSameBytes = (a, b) => a.length === b.length && a.every((byte, k) => byte === b[k]);

// --- the drawing: mask, tools, undo and view; it knows nothing of the notebook

class Drawing {
  constructor(canvas, hooks) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.hooks = hooks;
    this.tool = "brush"; this.size = 9; this.opacity = 0.5; this.isShown = true;
    this.pointers = new Map();
    this.reset(null, 1, 1, new Uint8Array(1));
  }

  reset(picture, width, height, pixels) {
    this.picture = picture;
    this.raster = { width, height, pixels };
    this.overlay = new OffscreenCanvas(width, height);
    this.overlayContext = this.overlay.getContext("2d", { willReadFrequently: true });
    this.undone = []; this.done = []; this.points = []; this.stroke = null;
    this.cursor = { x: width >> 1, y: height >> 1 }; this.isCursorShown = false; this.hover = null;
    this.refreshOverlay({ x0: 0, y0: 0, x1: width - 1, y1: height - 1 });
    this.fitView();
  }

  replacePixels(pixels) {
    this.change(() => { this.raster.pixels.set(pixels); return this.wholeBox(); }, false);
  }

  wholeBox() { return { x0: 0, y0: 0, x1: this.raster.width - 1, y1: this.raster.height - 1 }; }

  // one undoable change, made by a function that returns the box it touched
  change(paint, isOwn = true) {
    this.begin();
    this.extend(paint());
    this.finish(isOwn);
  }

  begin() {
    this.before = this.raster.pixels.slice();
    this.touched = emptyBox();
  }

  extend(box) {
    if (isEmpty(box)) return;
    this.touched = joinBoxes(this.touched, box);
    this.refreshOverlay(box);
    this.requestPaint(box);
  }

  finish(isOwn = true) {
    const box = this.touched, before = this.before;
    this.before = null;
    if (isEmpty(box)) return;
    const step = { box, before: this.cut(before, box), after: this.cut(this.raster.pixels, box) };
    if (haveSameBytes(step.before, step.after)) return;
    this.done.push(step);
    this.undone = [];
    let bytes = this.done.reduce((sum, { before: kept }) => sum + 2 * kept.length, 0);
    while (bytes > MAX_UNDO_BYTES && this.done.length > 1) bytes -= 2 * this.done.shift().before.length;
    this.hooks.onChange(isOwn);
  }

  cut(pixels, { x0, y0, x1, y1 }) {
    const width = x1 - x0 + 1, part = new Uint8Array(width * (y1 - y0 + 1));
    for (let y = y0; y <= y1; y++) {
      const start = y * this.raster.width + x0;
      part.set(pixels.subarray(start, start + width), (y - y0) * width);
    }
    return part;
  }

  paste(part, box) {
    const { x0, y0, x1, y1 } = box, width = x1 - x0 + 1;
    for (let y = y0; y <= y1; y++) {
      const start = (y - y0) * width;
      this.raster.pixels.set(part.subarray(start, start + width), y * this.raster.width + x0);
    }
    this.refreshOverlay(box);
    this.requestPaint(box);
  }

  undo() {
    if (this.points.length) { this.points.pop(); this.requestPaint(); return; }
    const step = this.done.pop();
    if (!step || this.stroke) return;
    this.undone.push(step);
    this.paste(step.before, step.box);
    this.hooks.onChange(true);
  }

  redo() {
    const step = this.undone.pop();
    if (!step || this.stroke) return;
    this.done.push(step);
    this.paste(step.after, step.box);
    this.hooks.onChange(true);
  }

  invert() {
    this.change(() => { const { pixels } = this.raster; pixels.forEach((v, k) => { pixels[k] = 1 - v; }); return this.wholeBox(); });
  }

  clear() { this.change(() => { this.raster.pixels.fill(0); return this.wholeBox(); }); }

  // --- tools, driven by pointer and keyboard alike

  press(point, isErasing) {
    const value = isErasing || this.tool === "eraser" ? 0 : 1;
    if (this.tool === "polygon") {
      this.polygonValue = value;
      this.points.push(point);
      this.requestPaint();
      return;
    }
    if (this.tool === "fill") { this.change(() => paintFill(this.raster, point, value)); return; }
    this.stroke = { start: point, last: point, value };
    if (this.isFreehand()) {
      this.begin();
      this.extend(paintSegment(this.raster, point, point, this.size, value));
    }
  }

  isFreehand() { return this.tool === "brush" || this.tool === "eraser"; }

  drag(point) {
    if (!this.stroke || (point.x === this.stroke.last.x && point.y === this.stroke.last.y)) return;
    if (this.isFreehand()) {
      this.extend(paintSegment(this.raster, this.stroke.last, point, this.size, this.stroke.value));
    }
    this.stroke.last = point;
    if (!this.isFreehand()) this.requestPaint();
  }

  release() {
    const stroke = this.stroke;
    this.stroke = null;
    if (!stroke) return;
    if (this.isFreehand()) this.finish();
    else if (this.tool === "line") {
      this.change(() => paintSegment(this.raster, stroke.start, stroke.last, this.size, stroke.value));
    } else this.change(() => paintRectangle(this.raster, stroke.start, stroke.last, stroke.value));
    this.requestPaint();
  }

  cancel() {
    const wasFreehand = this.stroke && this.isFreehand();
    this.stroke = null; this.points = [];
    if (wasFreehand && !isEmpty(this.touched)) this.paste(this.cut(this.before, this.touched), this.touched);
    this.before = null;
    this.requestPaint();
  }

  closePolygon() {
    const points = this.points.filter((p, k, all) => !k || p.x !== all[k - 1].x || p.y !== all[k - 1].y);
    this.points = [];
    if (points.length >= 3) this.change(() => paintPolygon(this.raster, points, this.polygonValue));
    this.requestPaint();
  }

  chooseTool(name) {
    if (this.stroke) this.release();
    this.points = [];
    this.tool = name;
    this.requestPaint();
  }

  // --- view: a point of the image is shown at offset + point × scale, in CSS pixels of the canvas

  fitView() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const scale = Math.min(width / this.raster.width, height / this.raster.height);
    this.view = {
      scale, x: (width - this.raster.width * scale) / 2, y: (height - this.raster.height * scale) / 2,
    };
    this.requestPaint();
  }

  zoom(factor, at) {
    const point = at || { x: this.canvas.clientWidth / 2, y: this.canvas.clientHeight / 2 };
    const scale = Math.min(64, Math.max(0.02, this.view.scale * factor)), ratio = scale / this.view.scale;
    this.view = { scale, x: point.x - (point.x - this.view.x) * ratio, y: point.y - (point.y - this.view.y) * ratio };
    this.requestPaint();
  }

  pan(dx, dy) {
    this.view.x += dx; this.view.y += dy;
    this.requestPaint();
  }

  toCanvas(event) {
    const seen = this.canvas.getBoundingClientRect();
    return {
      x: (event.clientX - seen.left) * this.canvas.clientWidth / seen.width,
      y: (event.clientY - seen.top) * this.canvas.clientHeight / seen.height,
    };
  }

  toPixel(event) {
    const at = this.toCanvas(event);
    return {
      x: Math.floor((at.x - this.view.x) / this.view.scale), y: Math.floor((at.y - this.view.y) / this.view.scale),
    };
  }

  // --- painting: only what changed is painted again, at most once a frame

  refreshOverlay(dirty) {
    const box = clipBox(dirty, this.raster), width = box.x1 - box.x0 + 1;
    if (isEmpty(box)) return;
    const patch = this.overlayContext.createImageData(width, box.y1 - box.y0 + 1);
    const colours = new Uint32Array(patch.data.buffer);
    for (let y = box.y0, k = 0; y <= box.y1; y++) {
      const row = y * this.raster.width;
      for (let x = box.x0; x <= box.x1; x++, k++) if (this.raster.pixels[row + x]) colours[k] = 0xff3c14ff; // red, from the high byte: alpha, blue, green, red
    }
    this.overlayContext.putImageData(patch, box.x0, box.y0);
  }

  requestPaint(box = null) {
    if (!box || this.dirty === "all") this.dirty = "all";
    else this.dirty = this.dirty ? joinBoxes(this.dirty, box) : box;
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = null; this.paint(); });
  }

  paint() {
    const dirty = this.dirty, context = this.context, ratio = globalThis.devicePixelRatio || 1;
    this.dirty = null;
    const width = Math.round(this.canvas.clientWidth * ratio), height = Math.round(this.canvas.clientHeight * ratio);
    if (!width || !height || !this.view) return;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      Object.assign(this.canvas, { width, height });
      return this.requestPaint();
    }
    const scale = this.view.scale * ratio, left = this.view.x * ratio, top = this.view.y * ratio;
    const box = dirty === "all" ? this.wholeBox() : { x0: dirty.x0 - 2, y0: dirty.y0 - 2, x1: dirty.x1 + 2, y1: dirty.y1 + 2 };
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    if (dirty === "all") context.clearRect(0, 0, width, height);
    // what can be seen of the box, in whole pixels of the image
    const seen = clipBox(clipBox(box, this.raster), this.raster);
    const x0 = Math.max(seen.x0, Math.floor(-left / scale)), y0 = Math.max(seen.y0, Math.floor(-top / scale));
    const x1 = Math.min(seen.x1, Math.ceil((width - left) / scale)), y1 = Math.min(seen.y1, Math.ceil((height - top) / scale));
    if (x1 >= x0 && y1 >= y0) this.paintImage(x0, y0, x1 - x0 + 1, y1 - y0 + 1, scale, left, top);
    if (dirty === "all") this.paintGuides(scale, left, top, ratio);
    context.restore();
    this.hooks.onPaint();
  }

  paintImage(x, y, width, height, scale, left, top) {
    const context = this.context, place = [left + x * scale, top + y * scale, width * scale, height * scale];
    context.imageSmoothingEnabled = scale < 1;
    context.globalAlpha = 1;
    if (this.picture) context.drawImage(this.picture, x, y, width, height, ...place);
    if (!this.isShown) return;
    context.globalAlpha = this.opacity;
    context.drawImage(this.overlay, x, y, width, height, ...place);
    context.globalAlpha = 1;
  }

  paintGuides(scale, left, top, ratio) {
    const context = this.context, centre = (p) => [left + (p.x + 0.5) * scale, top + (p.y + 0.5) * scale];
    context.lineWidth = 1.5 * ratio;
    context.strokeStyle = "#00c2ff";
    if (this.points.length) {
      context.beginPath();
      [...this.points, this.hover || this.points[0]].forEach((p) => context.lineTo(...centre(p)));
      context.stroke();
      this.points.forEach((p) => { const [x, y] = centre(p); context.strokeRect(x - 3 * ratio, y - 3 * ratio, 6 * ratio, 6 * ratio); });
    }
    if (this.stroke && this.tool === "rectangle") {
      const { start, last } = this.stroke;
      context.strokeRect(
        left + Math.min(start.x, last.x) * scale, top + Math.min(start.y, last.y) * scale,
        (Math.abs(last.x - start.x) + 1) * scale, (Math.abs(last.y - start.y) + 1) * scale,
      );
    }
    if (this.stroke && this.tool === "line") {
      context.save();
      Object.assign(context, { lineWidth: Math.max(1, this.size * scale), lineCap: "round", globalAlpha: 0.6 });
      context.beginPath(); context.moveTo(...centre(this.stroke.start)); context.lineTo(...centre(this.stroke.last)); context.stroke();
      context.restore();
    }
    if (this.isCursorShown) {
      const [x, y] = centre(this.cursor), arm = 9 * ratio;
      context.beginPath();
      context.moveTo(x - arm, y); context.lineTo(x + arm, y); context.moveTo(x, y - arm); context.lineTo(x, y + arm);
      context.stroke();
    }
  }
}

// --- the page: toolbar, pointer, keyboard

function makeToolbar(bar, drawing) {
  const tools = {};
  const chooseTool = (name) => {
    drawing.chooseTool(name);
    for (const [key, button] of Object.entries(tools)) button.setAttribute("aria-pressed", key === name);
    drawing.canvas.dataset.tool = name;
    drawing.hooks.onView();
  };
  const group = () => makeElement("span", { className: "mask-canvas-group" }, bar);
  let place = group();
  for (const [name, [icon, title]] of Object.entries(TOOLS)) tools[name] = makeButton(place, icon, title, () => chooseTool(name));
  place = group();
  const label = makeElement("label", { textContent: "Size ", title: "Brush size in pixels of the image ( [ and ] )" }, place);
  const size = makeElement("input", { type: "range", min: 1, max: MAX_BRUSH, step: 2, value: drawing.size }, label);
  const shown = makeElement("output", { textContent: drawing.size }, label);
  const setSize = (value) => {
    drawing.size = Math.min(MAX_BRUSH, Math.max(1, 2 * Math.floor(value / 2) + 1));
    size.value = drawing.size; shown.textContent = drawing.size;
    drawing.hooks.onView();
  };
  size.addEventListener("input", () => setSize(Number(size.value)));
  place = group();
  const undo = makeButton(place, "Undo", "Undo (Ctrl+Z)", () => drawing.undo());
  const redo = makeButton(place, "Redo", "Redo (Ctrl+Shift+Z or Ctrl+Y)", () => drawing.redo());
  makeButton(place, "Invert", "Invert the mask (I)", () => drawing.invert());
  makeButton(place, "Clear", "Clear the mask; undo brings it back", () => drawing.clear());
  place = group();
  makeButton(place, "−", "Zoom out (−)", () => drawing.zoom(1 / 1.5));
  makeButton(place, "+", "Zoom in (+), or Ctrl and the mouse wheel", () => drawing.zoom(1.5));
  makeButton(place, "Fit", "Show the whole image (0)", () => drawing.fitView());
  place = group();
  const toggle = makeButton(place, "Mask", "Show or hide the mask (H)", () => {
    drawing.isShown = !drawing.isShown;
    toggle.setAttribute("aria-pressed", drawing.isShown);
    drawing.requestPaint();
  });
  toggle.setAttribute("aria-pressed", true);
  const opacityLabel = makeElement("label", { textContent: "Opacity ", title: "How strongly the mask covers the image" }, place);
  const opacity = makeElement("input", { type: "range", min: 10, max: 100, value: 50 }, opacityLabel);
  opacity.addEventListener("input", () => { drawing.opacity = opacity.value / 100; drawing.requestPaint(); });
  return { chooseTool, setSize, undo, redo, toggle, place };
}

function listenToPointer(drawing) {
  const canvas = drawing.canvas;
  let pinch = null, panFrom = null;
  const isErasing = (event) => event.button === 2 || (event.pointerType === "pen" && event.button === 5);
  const pinchOf = () => {
    const [a, b] = [...drawing.pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, gap: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    drawing.isCursorShown = false;
    try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that is already gone */ }
    drawing.pointers.set(event.pointerId, drawing.toCanvas(event));
    if (drawing.pointers.size === 2) { drawing.cancel(); panFrom = null; pinch = pinchOf(); return; }
    if (drawing.pointers.size > 2) return;
    if (event.button === 1 || drawing.tool === "move") { event.preventDefault(); panFrom = drawing.toCanvas(event); return; }
    drawing.press(drawing.toPixel(event), isErasing(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    drawing.hover = drawing.toPixel(event);
    drawing.hooks.onHover(drawing.hover);
    if (drawing.points.length) drawing.requestPaint();
    if (!drawing.pointers.has(event.pointerId)) return;
    const at = drawing.toCanvas(event);
    drawing.pointers.set(event.pointerId, at);
    if (pinch && drawing.pointers.size === 2) {
      const now = pinchOf();
      drawing.pan(now.x - pinch.x, now.y - pinch.y);
      if (pinch.gap) drawing.zoom(now.gap / pinch.gap, now);
      pinch = now;
    } else if (panFrom) {
      drawing.pan(at.x - panFrom.x, at.y - panFrom.y);
      panFrom = at;
    } else {
      const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const step of passed.length ? passed : [event]) drawing.drag(drawing.toPixel(step));
    }
  });
  const lift = (event) => {
    if (!drawing.pointers.delete(event.pointerId)) return;
    if (drawing.pointers.size === 0) pinch = null;
    panFrom = null;
    if (event.type === "pointercancel") drawing.cancel(); else drawing.release();
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { drawing.hover = null; drawing.hooks.onHover(null); });
  canvas.addEventListener("dblclick", () => { if (drawing.points.length) drawing.closePolygon(); });
  canvas.addEventListener("contextmenu", (event) => { event.preventDefault(); event.stopPropagation(); });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    drawing.zoom(Math.exp(-event.deltaY / 300), drawing.toCanvas(event));
  }, { passive: false });
}

function listenToKeys(root, drawing, bar) {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const keys = {
    "[": () => bar.setSize(drawing.size - 2), "]": () => bar.setSize(drawing.size + 2),
    "+": () => drawing.zoom(1.5), "=": () => drawing.zoom(1.5), "-": () => drawing.zoom(1 / 1.5),
    0: () => drawing.fitView(), h: () => bar.toggle.click(), i: () => drawing.invert(),
    Enter: () => drawing.closePolygon(), Escape: () => drawing.cancel(), Backspace: () => drawing.points.length && drawing.undo(),
  };
  for (const [name, [, , key]] of Object.entries(TOOLS)) keys[key] = () => bar.chooseTool(name);
  const moveCursor = ([dx, dy], stride) => {
    const { width, height } = drawing.raster, old = drawing.cursor;
    drawing.cursor = {
      x: Math.min(width - 1, Math.max(0, old.x + dx * stride)), y: Math.min(height - 1, Math.max(0, old.y + dy * stride)),
    };
    drawing.isCursorShown = true;
    drawing.drag(drawing.cursor);
    drawing.hooks.onHover(drawing.cursor);
    drawing.requestPaint();
  };
  root.addEventListener("keydown", (event) => {
    const isOnCanvas = event.target === drawing.canvas;
    if (event.target.tagName === "INPUT" && event.key.startsWith("Arrow")) return;
    if (!isOnCanvas && (event.key === "Enter" || event.key === " ")) return; // the focused button's own keys
    const isCommand = event.ctrlKey || event.metaKey, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    let isOurs = true;
    if (isCommand && key === "z") { if (event.shiftKey) drawing.redo(); else drawing.undo(); }
    else if (isCommand && key === "y") drawing.redo();
    else if (isCommand || event.altKey) isOurs = false;
    else if (arrows[key] && isOnCanvas) moveCursor(arrows[key], event.shiftKey ? 10 : 1);
    else if (key === " " && isOnCanvas) {
      drawing.isCursorShown = true;
      if (drawing.stroke) drawing.release(); else drawing.press(drawing.cursor, false);
      drawing.requestPaint();
    } else if (keys[key]) keys[key]();
    else isOurs = false;
    if (isOurs) { event.preventDefault(); event.stopPropagation(); }
  });
}

// --- the notebook

function render({ model, el }) {
  const root = makeElement("div", { className: "mask-canvas" }, el);
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves our keys to us
  const bar = makeElement("div", { className: "mask-canvas-bar" }, root);
  bar.setAttribute("role", "toolbar");
  const stage = makeElement("div", { className: "mask-canvas-stage" }, root);
  const canvas = makeElement("canvas", { tabIndex: 0 }, stage);
  const brush = makeElement("div", { className: "mask-canvas-brush", hidden: true }, stage);
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Mask drawing: arrow keys move the cursor, space starts and ends a stroke, Enter closes a polygon");
  const status = makeElement("div", { className: "mask-canvas-status" }, root);
  status.setAttribute("aria-live", "polite");
  const position = makeElement("span", {}, status), message = makeElement("span", {}, status);

  let sent = new Uint8Array(), timer = null, imageNumber = 0, toolbar = null;
  const riskKey = () => `${model.get("name")} ${model.get("width")} ${model.get("height")}`;
  const say = (text, kind = "") => { message.textContent = text; message.className = kind; };

  const send = () => {
    sent = packMask(drawing.raster.pixels, imageNumber);
    strokesAtRisk.set(riskKey(), drawing.raster.pixels.slice());
    clearTimeout(timer);
    timer = setTimeout(() => say("The kernel does not answer: your strokes are kept in this page. Restart it and run the cell again.", "is-late"), ANSWER_MS);
    say("…");
    try {
      model.set("packed_mask", new DataView(sent.buffer));
      model.save_changes();
    } catch { /* no kernel: the timer says so */ }
  };
  const showState = () => {
    if (!toolbar) return;
    toolbar.undo.disabled = !drawing.done.length;
    toolbar.redo.disabled = !drawing.undone.length;
  };
  const showBrush = () => { // a ring of the brush's size, moved by the compositor without painting anything
    const { hover, view, size, tool } = drawing;
    brush.hidden = !hover || !view || !["brush", "eraser", "line"].includes(tool);
    if (brush.hidden) return;
    const side = Math.max(3, size * view.scale), at = (offset, pixel) => offset + (pixel + 0.5) * view.scale - side / 2;
    brush.style.cssText = `width: ${side}px; height: ${side}px; translate: ${at(view.x, hover.x)}px ${at(view.y, hover.y)}px`;
  };
  const drawing = new Drawing(canvas, {
    onChange: (isOwn) => { showState(); if (isOwn) send(); },
    onPaint: () => { canvas.dataset.view = JSON.stringify(drawing.view); showBrush(); },
    onHover: (at) => { position.textContent = at ? `x ${at.x}, y ${at.y}` : ""; showBrush(); },
    onView: () => showBrush(),
  });
  toolbar = makeToolbar(bar, drawing);
  toolbar.chooseTool("brush");
  listenToPointer(drawing);
  listenToKeys(root, drawing, toolbar);

  const rescue = makeButton(bar, "Take back lost strokes", "Strokes drawn here while no kernel answered", () => {
    const kept = strokesAtRisk.get(riskKey());
    rescue.hidden = true;
    if (kept) drawing.change(() => { drawing.raster.pixels.set(kept); return drawing.wholeBox(); });
  });
  const loadImage = async () => {
    const bytes = asBytes(model.get("image_png")), width = model.get("width"), height = model.get("height");
    const packed = asBytes(model.get("packed_mask"));
    const number = new DataView(packed.buffer, packed.byteOffset).getUint32(0, true);
    canvas.style.height = `${model.get("canvas_height")}px`;
    const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    if (model.get("image_number") !== number) return; // another image came meanwhile
    imageNumber = number; sent = packed;
    drawing.reset(picture, width, height, unpackMask(packed, width * height));
    rescue.hidden = !strokesAtRisk.has(riskKey());
    root.dataset.image = model.get("name");
    showState();
    say("");
  };
  const takeMask = () => {
    const packed = asBytes(model.get("packed_mask"));
    const number = new DataView(packed.buffer, packed.byteOffset).getUint32(0, true);
    if (number !== imageNumber || haveSameBytes(packed, sent)) return; // a new image brings its own
    sent = packed;
    drawing.replacePixels(unpackMask(packed, drawing.raster.pixels.length));
  };
  const onAnswer = (content) => {
    if (content.kind !== "received") return;
    clearTimeout(timer);
    strokesAtRisk.delete(riskKey());
    rescue.hidden = true;
    const share = content.pixels / (drawing.raster.width * drawing.raster.height);
    say(`${content.pixels} pixels (${(100 * share).toFixed(2)} %) in the notebook`);
  };
  model.on("change:image_number", loadImage);
  model.on("change:packed_mask", takeMask);
  model.on("msg:custom", onAnswer);
  const sizes = new ResizeObserver(() => { if (!drawing.view) drawing.fitView(); else drawing.requestPaint(); });
  sizes.observe(canvas);
  loadImage();
  return () => {
    sizes.disconnect();
    clearTimeout(timer);
    model.off("change:image_number", loadImage);
    model.off("change:packed_mask", takeMask);
    model.off("msg:custom", onAnswer);
  };
}

export default { render };
