/**
 * Feature maps: original, best checkpoint and any other one, side by side.
 *
 * A map holds a column of tiles per held-out image, in the images' ratio, and a row per kind (see KINDS). It is shown
 * only once it is loaded, together with the position it belongs to, so that a caption never runs ahead of its picture.
 */

import { mediaAddress } from './api.js';
import { el, short } from './dom.js';
import { placeOf } from './series.js';

const FRAME_MS = 160; // pause between maps while playing
const AHEAD = 3; // neighbours loaded before they are asked for
const KEPT = 120; // decoded strips kept

/** What a map's rows show, from top to bottom. */
export const KINDS = [
  { key: 'features', title: 'Features', explanation: 'First three principal components of the tokens as red, green and blue, in the same basis for all checkpoints' },
  { key: 'image', title: 'Clusters in image', explanation: 'K-means clusters within each image, whose radius is M_intra, image; each in the mean colour of its tokens' },
  { key: 'shared', title: 'Shared clusters', explanation: 'K-means clusters shared by a group of images, from which M_inter and M_intra, batch follow; each in the mean colour of its tokens' },
];

export class FeatureMaps {
  /**
   * @param {HTMLElement} root
   * @param {{choose: function(number), details: function(number[]): Promise<Map>, kind: function(string)}} actions - `details`
   *   reads metadata, `kind` says what to show
   */
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.strips = new Map();
    this.playing = null;
    this.kind = KINDS[0].key;
    this.slider = el('input', {
      type: 'range',
      min: 0,
      step: 1,
      'aria-label': 'Checkpoint of the right column',
      oninput: () => this.go(Number(this.slider.value)),
    });
    this.play = el('button.quiet', { type: 'button', text: 'Play', title: 'Play (space)', onclick: () => this.toggle() });
    this.typed = el('input.typed', { type: 'text', inputMode: 'numeric', 'aria-label': 'Go to position', onchange: () => this.typedPosition() });
    this.kinds = KINDS.map(({ key, title, explanation }) => el('button', { type: 'button', text: title, title: explanation, 'data-kind': key, onclick: () => actions.kind(key) }));
    this.large = el('button.quiet.enlarge', { type: 'button', text: 'Enlarge', onclick: () => this.enlarge() });
    this.table = el('div.maps', {});
    this.captions = { image: el('span', { text: 'image' }), best: el('span.best-text', {}), now: el('span', {}) };
    this.body = el(
      'div.maps-body',
      { tabIndex: 0, onkeydown: (event) => this.key(event), 'aria-label': 'Feature maps: arrow keys step, space plays' },
      el('div.row', {}, this.step('◀', -1), this.slider, this.step('▶', 1)),
      el('div.row', {}, this.play, this.typed, el('span.grow', {}), this.large),
      el('div.row', {}, el('span.segments', { role: 'group', 'aria-label': 'What the maps show' }, ...this.kinds)),
      this.table,
    );
    this.note = el('p.soft', {});
    root.append(el('header.rail-head', {}, el('h2', { text: 'Feature maps' })), this.note, this.body);
    this.dialog = el('dialog.maps-dialog', { onclose: () => root.append(this.body), 'aria-label': 'Feature maps' });
    document.body.append(this.dialog);
  }

  step(text, by) {
    return el('button.quiet', { type: 'button', text, 'aria-label': by < 0 ? 'Previous checkpoint' : 'Next checkpoint', onclick: () => this.go(this.index + by) });
  }

  /** Show a run; `chosen` is an index into its line, or null for the last checkpoint; `kind` is a key of KINDS. */
  draw(run, chosen, kind) {
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
    this.kind = kind;
    for (const button of this.kinds) button.setAttribute('aria-pressed', String(button.dataset.kind === kind));
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
    return placeOf(points, line, index);
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
    if (!Number.isFinite(wanted)) return;
    const distance = this.run.line.x.map((x) => Math.abs(x - wanted));
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

  enlarge() {
    this.dialog.replaceChildren(
      el('header.rail-head', {}, el('h2', { text: `Feature maps, ${short(this.run.name, 80)}` }), el('button.quiet', { type: 'button', text: 'Close', onclick: () => this.dialog.close() })),
      this.body,
    );
    this.dialog.showModal();
    this.body.focus({ preventScroll: true });
  }

  /**
   * The map of a checkpoint, or null if there is none. Asks for a file only if the server said that it is there. Where
   * that is the map of another checkpoint nearby, `index` says which.
   * @returns {Promise<?{image: HTMLImageElement, index: number}>}
   */
  async strip(index) {
    const { run } = this;
    const seq = this.seq(index);
    if (!run.details.has(seq)) await this.actions.details(this.around(index));
    const shown = run.details.get(seq)?.map;
    if (!Number.isSafeInteger(shown)) return null;
    const image = await this.load(`${run.id}/${shown}`, mediaAddress(run.id, shown));
    return { image, index: run.indexOfRow.get(run.rowOfSeq.get(shown)) ?? index };
  }

  load(key, address) {
    if (!this.strips.has(key)) {
      const loading = loadImage(address);
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
    const seq = this.seq(index);
    const found = await this.actions.details([seq]);
    return found.get(seq)?.originals ? this.load(`${this.run.id}/images`, mediaAddress(this.run.id, 'images')) : null;
  }

  async show() {
    const { run, index } = this;
    const { best } = run.line;
    let loaded;
    try {
      loaded = await Promise.all([this.originals(index), this.strip(best), this.strip(index)]);
    } catch {
      this.say('The feature maps could not be read.');
      return;
    }
    if (run !== this.run && run.id !== this.run.id) return;
    if (index !== this.index) return; // a newer request is on its way
    const [image, bestMap, nowMap] = loaded;
    if (!bestMap && !nowMap) {
      this.say('No feature maps were painted for these checkpoints.');
      return;
    }
    this.say('');
    this.caption(this.captions.best, best, bestMap, `★ ${this.where(best)}`, 'the best checkpoint');
    this.caption(this.captions.now, index, nowMap, index === best ? 'the same' : this.where(index), '');
    this.typed.placeholder = this.where(index);
    this.typed.value = '';
    this.slider.setAttribute('aria-valuetext', this.where(index));
    this.tiles(image, bestMap?.image, nowMap?.image);
    for (let k = 1; k <= AHEAD; k++) {
      for (const near of [index + k, index - k]) if (near >= 0 && near < run.line.rows.length) this.strip(near).catch(() => null);
    }
  }

  /** Whose map it is: that of the checkpoint asked for, or of its nearest neighbour that has one. */
  caption(node, index, map, text, title) {
    const same = !map || map.index === index;
    node.textContent = same ? text : `≈ ${this.where(map.index)}`;
    node.title = same ? title : `the map nearest to ${this.where(index)}`;
  }

  say(text) {
    this.noteText = text;
    this.note.textContent = text;
    this.body.hidden = text !== '';
  }

  tiles(image, bestStrip, nowStrip) {
    const strips = [image, bestStrip, nowStrip];
    const heights = [1, KINDS.length, KINDS.length]; // in tiles
    const kind = KINDS.findIndex(({ key }) => key === this.kind);
    const ratio = ratioOf(this.run);
    const widths = strips.map((strip, column) => (strip ? Math.round((strip.naturalWidth * heights[column]) / (strip.naturalHeight * ratio)) : 0));
    const rows = Math.max(...widths);
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
      const place = (at, count) => `${count > 1 ? (at / (count - 1)) * 100 : 0}%`;
      for (let row = 0; row < rows; row++) {
        const tile = tiles[row * 3 + column];
        tile.style.aspectRatio = ratio;
        tile.style.backgroundImage = strip ? `url("${strip.src}")` : 'none';
        tile.style.backgroundSize = `${widths[column] * 100}% ${heights[column] * 100}%`;
        tile.style.backgroundPosition = `${place(row, widths[column])} ${place(column ? kind : 0, heights[column])}`;
        tile.setAttribute('aria-label', `${['image', 'best', 'shown'][column]} ${row + 1}${strip ? '' : ': none'}`);
      }
    });
  }
}

/** Width by height of a run's images, of which the strips do not tell how many they hold. */
function ratioOf(run) {
  const crop = run.state?.settings_by_fingerprint?.[run.state?.settings]?.crop;
  return Array.isArray(crop) ? crop[1] / crop[0] : 1;
}

function loadImage(address) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error('no image'));
    image.src = address;
  });
}
