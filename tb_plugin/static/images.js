/**
 * Feature maps: original, best checkpoint and any other one, side by side.
 *
 * Every file is a strip of square tiles, one per held-out image. A map is shown only once it is loaded, together with the
 * position it belongs to, so that a caption never runs ahead of its picture.
 */

import { mediaAddress } from './api.js';
import { el, position, short } from './dom.js';

const FRAME_MS = 160; // pause between maps while playing
const AHEAD = 3; // neighbours loaded before they are asked for
const KEPT = 120; // decoded strips kept
const REGIONS = 4; // colours of the region view

export class FeatureMaps {
  /**
   * @param {HTMLElement} root
   * @param {{choose: function(number), details: function(number[]): Promise<Map>}} actions - `details` reads metadata
   */
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.strips = new Map();
    this.playing = null;
    this.regions = false;
    this.slider = el('input', {
      type: 'range',
      min: 0,
      step: 1,
      'aria-label': 'Checkpoint of the right column',
      oninput: () => this.go(Number(this.slider.value)),
    });
    this.play = el('button.quiet', { type: 'button', text: '▶', 'aria-label': 'Play', title: 'Play (space)', onclick: () => this.toggle() });
    this.typed = el('input.typed', { type: 'text', inputMode: 'numeric', 'aria-label': 'Go to position', onchange: () => this.typedPosition() });
    this.regionsBox = el('input', { type: 'checkbox', onchange: () => this.setRegions(this.regionsBox.checked) });
    this.large = el('button.quiet.enlarge', { type: 'button', text: 'Enlarge', onclick: () => this.enlarge() });
    this.table = el('div.maps', {});
    this.captions = { image: el('span', { text: 'image' }), best: el('span.best-text', {}), now: el('span', {}) };
    this.body = el(
      'div.maps-body',
      { tabIndex: 0, onkeydown: (event) => this.key(event), 'aria-label': 'Feature maps: arrow keys step, space plays' },
      el('div.row', {}, this.step('◀', -1), this.slider, this.step('▶', 1)),
      el('div.row', {}, this.play, this.typed, el('span.grow', {}), el('label.soft', { title: `Colours reduced to ${REGIONS}: which regions the features tell apart` }, this.regionsBox, 'regions'), this.large),
      this.table,
    );
    this.play.textContent = 'Play';
    this.note = el('p.soft', {});
    root.append(el('header.rail-head', {}, el('h2', { text: 'Feature maps' })), this.note, this.body);
    this.dialog = el('dialog.maps-dialog', { onclose: () => root.append(this.body), 'aria-label': 'Feature maps' });
    document.body.append(this.dialog);
  }

  step(text, by) {
    return el('button.quiet', { type: 'button', text, 'aria-label': by < 0 ? 'Previous checkpoint' : 'Next checkpoint', onclick: () => this.go(this.index + by) });
  }

  /** Show a run; `chosen` is an index into its line, or null for the last checkpoint. */
  draw(run, chosen) {
    const { line } = run;
    const none = line.rows.length === 0;
    if (none) this.body.hidden = true;
    this.note.textContent = none ? 'Feature maps appear with the first scored checkpoint.' : this.noteText ?? '';
    if (none) return;
    if (this.run?.id !== run.id) {
      this.stop();
      this.noteText = '';
      this.note.textContent = '';
    }
    this.run = run;
    this.slider.max = line.rows.length - 1;
    this.index = chosen ?? line.rows.length - 1;
    this.slider.value = this.index;
    this.show();
  }

  seq(index) {
    return this.run.points.columns.seq[this.run.line.rows[index]];
  }

  where(index) {
    const { line, points } = this.run;
    return position(line.axis, line.axis === 'order' ? index + 1 : points.columns[line.axis][line.rows[index]]);
  }

  go(index) {
    const to = Math.min(Math.max(index, 0), this.run.line.rows.length - 1);
    if (to === this.index) return;
    this.index = to;
    this.slider.value = to;
    this.show();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.actions.choose(this.seq(to)), this.playing ? 0 : 60);
  }

  typedPosition() {
    const wanted = Number(this.typed.value.replace(/[^0-9.eE-]/g, ''));
    const { line, points } = this.run;
    if (!Number.isFinite(wanted)) return;
    const xs = line.rows.map((row, i) => (line.axis === 'order' ? i + 1 : points.columns[line.axis][row]));
    const distance = xs.map((x) => Math.abs(x - wanted));
    this.go(distance.indexOf(Math.min(...distance)));
  }

  key(event) {
    if (event.target === this.typed) return;
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (by) this.go(this.index + by);
    else if (event.key === 'Home') this.go(0);
    else if (event.key === 'End') this.go(this.run.line.rows.length - 1);
    else if (event.key === ' ' && event.target.tagName !== 'BUTTON' && event.target.type !== 'checkbox') this.toggle();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  toggle() {
    if (this.playing) this.stop();
    else this.start();
  }

  start() {
    this.play.textContent = 'Pause';
    this.playing = true;
    if (this.index >= this.run.line.rows.length - 1) this.go(0);
    const next = async () => {
      if (!this.playing) return;
      if (this.index >= this.run.line.rows.length - 1) return this.stop();
      await this.strip(this.index + 1).catch(() => null);
      if (!this.playing) return;
      this.go(this.index + 1);
      this.timer = setTimeout(next, FRAME_MS);
    };
    this.timer = setTimeout(next, FRAME_MS);
  }

  stop() {
    this.playing = null;
    clearTimeout(this.timer);
    this.play.textContent = 'Play';
  }

  setRegions(on) {
    this.regions = on;
    this.shownKey = '';
    this.show();
  }

  enlarge() {
    this.dialog.replaceChildren(
      el('header.rail-head', {}, el('h2', { text: `Feature maps, ${short(this.run.name, 80)}` }), el('button.quiet', { type: 'button', text: 'Close', onclick: () => this.dialog.close() })),
      this.body,
    );
    this.dialog.showModal();
    this.body.focus({ preventScroll: true });
  }

  /** The image of a checkpoint's strip, or null if it has none. Asks for a file only if the server said it is there. */
  async strip(index) {
    const seq = this.seq(index);
    const key = `${this.run.id}/${seq}`;
    if (!this.strips.has(key)) {
      const run = this.run;
      const loading = this.actions.details(this.around(index)).then((found) => {
        const meta = found.get(seq);
        return meta?.map ? loadImage(mediaAddress(run.id, seq)) : null;
      });
      this.strips.set(key, loading);
      if (this.strips.size > KEPT) this.strips.delete(this.strips.keys().next().value);
      loading.catch(() => this.strips.delete(key));
    }
    return this.strips.get(key);
  }

  around(index) {
    const from = Math.max(0, index - 20);
    const to = Math.min(this.run.line.rows.length, index + 21);
    return Array.from({ length: to - from }, (_, i) => this.seq(from + i));
  }

  async originals(index) {
    const key = `${this.run.id}/images`;
    if (!this.strips.has(key)) {
      const found = await this.actions.details([this.seq(index)]);
      if (!found.get(this.seq(index))?.originals) return null;
      this.strips.set(key, loadImage(mediaAddress(this.run.id, 'images')));
    }
    return this.strips.get(key);
  }

  async show() {
    const { run, index } = this;
    const { best } = run.line;
    let loaded;
    try {
      loaded = await Promise.all([this.originals(index), this.strip(best), this.strip(index)]);
    } catch {
      this.say('The feature maps could not be read: they are files beside the run and need a local log folder.');
      return;
    }
    if (run !== this.run && run.id !== this.run.id) return;
    if (index !== this.index) return; // a newer request is on its way
    const [image, bestStrip, nowStrip] = loaded;
    if (!bestStrip && !nowStrip) {
      this.say('No feature maps were painted for these checkpoints.');
      return;
    }
    this.say('');
    this.captions.best.textContent = `★ ${this.where(best)}`;
    this.captions.best.title = 'the best checkpoint';
    this.captions.now.textContent = index === best ? 'the same' : this.where(index);
    this.typed.placeholder = this.where(index);
    this.typed.value = '';
    this.slider.setAttribute('aria-valuetext', this.where(index));
    this.tiles(image, bestStrip, nowStrip);
    for (let k = 1; k <= AHEAD; k++) {
      for (const near of [index + k, index - k]) if (near >= 0 && near < run.line.rows.length) this.strip(near).catch(() => null);
    }
  }

  say(text) {
    this.noteText = text;
    this.note.textContent = text;
    this.body.hidden = text !== '';
  }

  tiles(image, bestStrip, nowStrip) {
    const strips = [image, bestStrip, nowStrip];
    const rows = Math.max(...strips.map((strip) => (strip ? Math.round(strip.naturalWidth / strip.naturalHeight) : 0)));
    const key = `${rows}/${strips.map(Boolean)}`;
    if (key !== this.shape) {
      this.shape = key;
      const cells = [this.captions.image, this.captions.best, this.captions.now];
      for (let row = 0; row < rows; row++) {
        for (let column = 0; column < 3; column++) cells.push(el(column ? 'div.tile.map' : 'div.tile', { role: 'img' }));
      }
      this.table.replaceChildren(...cells);
    }
    const tiles = this.table.querySelectorAll('.tile');
    strips.forEach((strip, column) => {
      const source = strip && (column && this.regions ? regionsOf(strip) : strip.src);
      for (let row = 0; row < rows; row++) {
        const tile = tiles[row * 3 + column];
        tile.style.backgroundImage = strip ? `url("${source}")` : 'none';
        tile.style.backgroundSize = `${rows * 100}% 100%`;
        tile.style.backgroundPosition = `${rows > 1 ? (row / (rows - 1)) * 100 : 0}% 0`;
        tile.setAttribute('aria-label', `${['image', 'best', 'shown'][column]} ${row + 1}${strip ? '' : ': none'}`);
      }
    });
  }
}

function loadImage(address) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error('no image'));
    image.src = address;
  });
}

const painted = new WeakMap();

/** The strip with its colours reduced to a few by k-means, each drawn flat: regions rather than shades. */
function regionsOf(strip) {
  if (painted.has(strip)) return painted.get(strip);
  const canvas = el('canvas', { width: strip.naturalWidth, height: strip.naturalHeight });
  const context = canvas.getContext('2d');
  context.drawImage(strip, 0, 0);
  const picture = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = picture.data;
  const labels = clusterColours(pixels, REGIONS);
  for (let i = 0; i < labels.colours.length; i++) labels.colours[i] = labels.colours[i].map(Math.round);
  for (let p = 0; p < labels.of.length; p++) {
    const [r, g, b] = labels.colours[labels.of[p]];
    pixels[4 * p] = r;
    pixels[4 * p + 1] = g;
    pixels[4 * p + 2] = b;
  }
  context.putImageData(picture, 0, 0);
  painted.set(strip, canvas.toDataURL());
  return painted.get(strip);
}

/** Plain k-means over RGBA bytes, started from pixels far from one another; always the same result. */
export function clusterColours(pixels, k) {
  const n = pixels.length / 4;
  const distance = (p, c) => (pixels[4 * p] - c[0]) ** 2 + (pixels[4 * p + 1] - c[1]) ** 2 + (pixels[4 * p + 2] - c[2]) ** 2;
  const at = (p) => [pixels[4 * p], pixels[4 * p + 1], pixels[4 * p + 2]];
  const colours = [at(0)];
  while (colours.length < k) {
    let [farthest, most] = [0, -1];
    for (let p = 0; p < n; p++) {
      const least = Math.min(...colours.map((c) => distance(p, c)));
      if (least > most) [farthest, most] = [p, least];
    }
    colours.push(at(farthest));
  }
  const of = new Uint8Array(n);
  for (let round = 0; round < 10; round++) {
    const sums = colours.map(() => [0, 0, 0, 0]);
    for (let p = 0; p < n; p++) {
      let near = 0;
      for (let c = 1; c < k; c++) if (distance(p, colours[c]) < distance(p, colours[near])) near = c;
      of[p] = near;
      const sum = sums[near];
      sum[0] += pixels[4 * p];
      sum[1] += pixels[4 * p + 1];
      sum[2] += pixels[4 * p + 2];
      sum[3] += 1;
    }
    sums.forEach(([r, g, b, m], c) => m && (colours[c] = [r / m, g / m, b / m]));
  }
  return { of, colours };
}
