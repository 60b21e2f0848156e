// The interactive map: every point on a canvas, an image for the one under the pointer, images for all when few are in
// view. `drawMap(holder, values)`; values as page_values in map_page.py makes them.
function drawMap(holder, values) {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const n = values.count, side = values.side, across = values.across, MOST_IMAGES = 150;
  const places = {};
  for (const way in values.places) places[way] = new Uint16Array(bytes(values.places[way]).buffer);
  const colour = bytes(values.colour);
  const inks = values.colours.map((c) => (255 << 24) | (parseInt(c.slice(5, 7), 16) << 16) | (parseInt(c.slice(3, 5), 16) << 8) | parseInt(c.slice(1, 3), 16));
  const faded = inks.map(() => (255 << 24) | 0xe9e4e1);
  const sheets = values.sheets.map(() => null);
  const canvas = holder.querySelector("canvas"), card = holder.querySelector(".card"), find = holder.querySelector("input");
  const context = canvas.getContext("2d");
  const asks = new URLSearchParams(location.search).has("ask");  // shown by the web page, which can be asked
  if (asks) card.querySelector("a").textContent = "ask with it";
  const shown = new Uint8Array(n).fill(1);
  let at = places.tsne, grid, image, pixels, scale = 1, left = 0, top = 0, pinned = -1, waiting = false;

  // Points by the cell of a grid that they lie in, to find the nearest one at once.
  const CELLS = 128;
  function makeGrid() {
    const cell = new Uint16Array(n), start = new Uint32Array(CELLS * CELLS + 1), order = new Uint32Array(n);
    for (let i = 0; i < n; i++) { cell[i] = (at[2 * i + 1] >> 9) * CELLS + (at[2 * i] >> 9); start[cell[i] + 1]++; }
    for (let c = 0; c < CELLS * CELLS; c++) start[c + 1] += start[c];
    const next = start.slice();
    for (let i = 0; i < n; i++) order[next[cell[i]]++] = i;
    grid = { start, order };
  }

  function sheetOf(i) {
    const s = Math.floor(i / (across * across));
    if (!sheets[s]) { sheets[s] = new Image(); sheets[s].onload = draw; sheets[s].src = values.sheets[s]; }
    return sheets[s];
  }
  function paint(ctx, i, x, y, size) {
    const sheet = sheetOf(i), t = i % (across * across);
    if (sheet.complete && sheet.naturalWidth) ctx.drawImage(sheet, (t % across) * side, Math.floor(t / across) * side, side, side, x, y, size, size);
  }

  function fit() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2), box = canvas.getBoundingClientRect();
    canvas.width = Math.max(1, Math.round(box.width * ratio)); canvas.height = Math.max(1, Math.round(box.height * ratio));
    image = context.createImageData(canvas.width, canvas.height); pixels = new Uint32Array(image.data.buffer);
    reset();
  }
  function reset() {
    const small = Math.min(canvas.width, canvas.height) * 0.94;
    scale = small / 65535; left = (canvas.width - small) / 2; top = (canvas.height - small) / 2; draw();
  }
  function draw() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; drawNow(); }); } }
  function drawNow() {
    const w = canvas.width, h = canvas.height, r = Math.max(1, Math.round(Math.min(w, h) / (n > 5000 ? 420 : 240)));
    pixels.fill(0xffffffff);
    const seen = [];
    let inView = 0;
    for (let pass = 0; pass < 2; pass++) for (let i = 0; i < n; i++) {  // those that are looked for lie on top
      if (shown[i] !== pass) continue;
      const x = (left + at[2 * i] * scale) | 0, y = (top + at[2 * i + 1] * scale) | 0;
      if (x < r || y < r || x >= w - r || y >= h - r) continue;
      inView++;
      if (inView <= MOST_IMAGES) seen.push(i);
      const ink = shown[i] ? inks[colour[i]] : faded[colour[i]];
      for (let dy = -r; dy <= r; dy++) { const row = (y + dy) * w + x; for (let dx = -r; dx <= r; dx++) if (dx * dx + dy * dy <= r * r + 1) pixels[row + dx] = ink; }
    }
    context.putImageData(image, 0, 0);
    if (inView <= MOST_IMAGES && scale * 65535 > 1.5 * Math.min(w, h)) {
      const size = side * Math.min(window.devicePixelRatio || 1, 2);
      for (const i of seen) paint(context, i, left + at[2 * i] * scale - size / 2, top + at[2 * i + 1] * scale - size / 2, size);
    }
    if (pinned >= 0) {
      context.strokeStyle = "#111"; context.lineWidth = 2; context.beginPath();
      context.arc(left + at[2 * pinned] * scale, top + at[2 * pinned + 1] * scale, 3 * r + 3, 0, 7); context.stroke();
    }
  }

  function nearest(x, y, within) {
    const px = (x - left) / scale, py = (y - top) / scale, reach = within / scale;
    const cell = (v) => Math.max(0, Math.min(CELLS - 1, Math.floor(v / 512)));
    let best = -1, distance = reach * reach;
    for (let cy = cell(py - reach); cy <= cell(py + reach); cy++) for (let cx = cell(px - reach); cx <= cell(px + reach); cx++) {
      const c = cy * CELLS + cx;
      for (let k = grid.start[c]; k < grid.start[c + 1]; k++) {
        const i = grid.order[k], dx = at[2 * i] - px, dy = at[2 * i + 1] - py, d = dx * dx + dy * dy;
        if (shown[i] && d < distance) { distance = d; best = i; }
      }
    }
    return best;
  }
  function show(i) {
    if (i === pinned) return;
    pinned = i; draw();
    card.hidden = i < 0;
    if (i < 0) return;
    const small = card.querySelector("canvas"), ctx = small.getContext("2d"), sheet = sheetOf(i);
    const put = () => { if (pinned === i) { ctx.fillStyle = "#eceef1"; ctx.fillRect(0, 0, small.width, small.height); paint(ctx, i, 0, 0, small.width); } };
    sheet.complete ? put() : sheet.addEventListener("load", put, { once: true });
    card.querySelector("b").textContent = values.keys[i];
    card.querySelector("span").textContent = values.label[i] === null ? "" : values.label[i];
    const link = card.querySelector("a"), target = asks ? `/?key=${encodeURIComponent(values.keys[i])}` : values.links[i];
    link.hidden = !target;
    if (target) link.href = target;
  }

  function zoom(x, y, by) {
    const least = (Math.min(canvas.width, canvas.height) * 0.5) / 65535, most = 400 * least, wanted = Math.max(least, Math.min(most, scale * by));
    left = x - ((x - left) * wanted) / scale; top = y - ((y - top) * wanted) / scale; scale = wanted; draw();
  }
  const pointers = new Map();
  const point = (e) => { const box = canvas.getBoundingClientRect(); return [((e.clientX - box.left) * canvas.width) / box.width, ((e.clientY - box.top) * canvas.height) / box.height]; };
  const spread = () => { const [a, b] = [...pointers.values()]; return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2, Math.hypot(a[0] - b[0], a[1] - b[1]) || 1]; };
  canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); pointers.set(e.pointerId, point(e)); show(nearest(...point(e), 24)); });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => pointers.delete(e.pointerId));
  canvas.addEventListener("pointermove", (e) => {
    const now = point(e), before = pointers.get(e.pointerId);
    if (!before) { show(nearest(...now, 16)); return; }
    if (pointers.size === 1) { left += now[0] - before[0]; top += now[1] - before[1]; pointers.set(e.pointerId, now); draw(); return; }
    const was = spread(); pointers.set(e.pointerId, now); const is = spread();
    left += is[0] - was[0]; top += is[1] - was[1]; zoom(is[0], is[1], is[2] / was[2]);
  });
  canvas.addEventListener("dblclick", () => { const link = card.querySelector("a"); if (pinned >= 0 && !link.hidden) link.click(); });
  canvas.addEventListener("wheel", (e) => { if (e.ctrlKey || holder.dataset.wheel === "zoom") { e.preventDefault(); zoom(...point(e), Math.exp(-e.deltaY / 400)); } }, { passive: false });
  holder.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
    const does = button.dataset.does;
    if (does === "in" || does === "out") zoom(canvas.width / 2, canvas.height / 2, does === "in" ? 1.6 : 1 / 1.6);
    else if (does === "reset") reset();
    else { at = places[does]; makeGrid(); pinned = -1; card.hidden = true; holder.querySelectorAll("button[data-way]").forEach((b) => b.classList.toggle("on", b === button)); draw(); }
  }));
  find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    for (let i = 0; i < n; i++) shown[i] = !wanted || values.keys[i].toLowerCase().includes(wanted) ? 1 : 0;
    draw();
  });
  new ResizeObserver(fit).observe(canvas);
  makeGrid(); fit();
  holder.map = { drawNow, zoom, nearest, show, place: (i) => [left + at[2 * i] * scale, top + at[2 * i + 1] * scale] };
}
