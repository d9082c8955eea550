// Two images of the same ground, side by side at a divider; pixels stay squares at any zoom.
import { select } from "d3-selection";
import { zoom, zoomIdentity } from "d3-zoom";

const GRIP = 14; // CSS pixels around the divider that move it
const STEP = 60;

export class Viewer {
  /**
   * @param canvas where to draw
   * @param size {width, height} of the ground in HR pixels
   * @param on {pick: (x, y), moved: share} listeners
   */
  constructor(canvas, size, on) {
    Object.assign(this, { canvas, size, on, left: null, right: null, divider: 0.5, pins: [], frame: null });
    this.transform = zoomIdentity;
    this.behaviour = zoom()
      .filter((event) => !event.button && !this.#nearDivider(event))
      .scaleExtent([0.02, 64])
      .on("zoom", ({ transform }) => {
        this.transform = transform;
        this.draw();
      });
    select(canvas).call(this.behaviour).on("dblclick.zoom", null);
    this.#listen();
    new ResizeObserver(() => this.#resized()).observe(canvas);
  }

  zoomBy(factor) {
    select(this.canvas).call(this.behaviour.scaleBy, factor);
  }

  /** One HR pixel on one CSS pixel, or the whole window. */
  zoomTo(scale) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const fitting = Math.min(width / this.size.width, height / this.size.height);
    const k = scale ?? fitting;
    const centred = zoomIdentity
      .translate(width / 2, height / 2)
      .scale(k)
      .translate(-this.size.width / 2, -this.size.height / 2);
    select(this.canvas).call(this.behaviour.transform, centred);
  }

  panBy(right, down) {
    const { k } = this.transform;
    select(this.canvas).call(this.behaviour.translateBy, right / k, down / k);
  }

  show(left, right) {
    Object.assign(this, { left, right });
    this.draw();
  }

  set(state) {
    Object.assign(this, state);
    this.draw();
  }

  /** The HR pixel below a place of the canvas, or null. */
  pixelAt(x, y) {
    const [column, row] = this.transform.invert([x, y]).map(Math.floor);
    const inside = column >= 0 && row >= 0 && column < this.size.width && row < this.size.height;
    return inside ? [column, row] : null;
  }

  draw() {
    const { canvas, transform } = this;
    const context = canvas.getContext("2d");
    const ratio = globalThis.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    const middle = this.divider * canvas.clientWidth;
    this.#half(context, this.left, 0, middle);
    this.#half(context, this.right, middle, canvas.clientWidth);
    context.save();
    context.translate(transform.x, transform.y);
    context.scale(transform.k, transform.k);
    if (this.frame) this.#box(context, this.frame, "#fff", 1.5);
    for (const pin of this.pins) this.#box(context, [pin.x, pin.y, 1, 1], pin.colour, 2.5);
    context.restore();
    context.fillStyle = "#000";
    context.fillRect(middle - 2, 0, 4, canvas.clientHeight);
    context.fillStyle = "#fff";
    context.fillRect(middle - 1, 0, 2, canvas.clientHeight);
  }

  #half(context, image, from, to) {
    if (!image || to <= from) return;
    const { x, y, k } = this.transform;
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, this.canvas.clientHeight);
    context.clip();
    context.imageSmoothingEnabled = false;
    context.drawImage(image, x, y, k * this.size.width, k * this.size.height);
    context.restore();
  }

  /** A frame that is seen on any ground, at least as large as a mark must be. */
  #box(context, [x, y, width, height], colour, line) {
    const { k } = this.transform;
    const grow = Math.max(0, 8 / k - width) / 2;
    const box = [x - grow, y - grow, width + 2 * grow, height + 2 * grow];
    context.lineWidth = (line + 2) / k;
    context.strokeStyle = "#000";
    context.strokeRect(...box);
    context.lineWidth = line / k;
    context.strokeStyle = colour;
    context.strokeRect(...box);
  }

  #place(event) {
    const touch = event.touches?.[0] ?? event;
    const { left, top } = this.canvas.getBoundingClientRect();
    return [touch.clientX - left, touch.clientY - top];
  }

  #nearDivider(event) {
    if (event.type === "wheel" || (event.touches?.length ?? 1) > 1) return false;
    return Math.abs(this.#place(event)[0] - this.divider * this.canvas.clientWidth) < GRIP;
  }

  #listen() {
    let dragging = false;
    let moved = false;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      moved = false;
      dragging = event.isPrimary && !event.button && this.#nearDivider(event);
      if (dragging) canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      canvas.classList.toggle("grip", dragging || this.#nearDivider(event));
      if (!dragging) return;
      moved = true;
      this.on.moved(Math.min(1, Math.max(0, this.#place(event)[0] / canvas.clientWidth)));
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (dragging = false));
    canvas.addEventListener("click", (event) => {
      const pixel = moved ? null : this.pixelAt(...this.#place(event));
      if (pixel) this.on.pick(...pixel);
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #key(event) {
    const actions = {
      "+": () => this.zoomBy(2),
      "=": () => this.zoomBy(2),
      "-": () => this.zoomBy(0.5),
      0: () => this.zoomTo(),
      1: () => this.zoomTo(1),
      ArrowLeft: () => this.panBy(STEP, 0),
      ArrowRight: () => this.panBy(-STEP, 0),
      ArrowUp: () => this.panBy(0, STEP),
      ArrowDown: () => this.panBy(0, -STEP),
      Enter: () => {
        const pixel = this.pixelAt(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2);
        if (pixel) this.on.pick(...pixel);
      },
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  #resized() {
    const { canvas } = this;
    const ratio = globalThis.devicePixelRatio || 1;
    const first = !canvas.dataset.sized;
    const same = canvas.dataset.sized === `${canvas.clientWidth}x${canvas.clientHeight}`;
    if (same || !canvas.clientWidth) return;
    canvas.dataset.sized = `${canvas.clientWidth}x${canvas.clientHeight}`;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    if (first) this.zoomTo();
    else this.draw();
  }
}
