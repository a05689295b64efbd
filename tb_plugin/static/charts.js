/**
 * Stacked panels on one x axis: lines with error bands, one cursor, one zoom.
 *
 * A scene is plain data: `{axis, range, zoom, panels, marks}`. A panel has `lines`; a line has ascending `x`, `y`, an
 * optional half-width `error`, the `seqs` of its points (null where they cannot be chosen), colours as functions so that a
 * change of theme needs no new data. Marks are drawn by marks.js.
 */

import uPlot from './vendor/uPlot.esm.js';
import { el, moment, number, position } from './dom.js';
import { drawOver, drawUnder, markTexts } from './marks.js';
import { isThinned, nearestIndex, tableOf } from './thinning.js';
import { tickTexts, timeTexts, yRange } from './ticks.js';

const AXIS_WIDTH = 58; // px, equal in all panels so that they align
const CLICK_PIXELS = 4; // a mouse that moved further has dragged
const REACH = 40; // px around the pointer in which a point can be chosen
const SYNC = 'dse';
const HEADER_HEIGHT = 26; // px, of a panel's title; also in style.css
const X_AXIS_HEIGHT = 28; // px
const LEAST_HEIGHT = 62; // px per unit of weight; below it the panels scroll

const isEmpty = (panel) => panel.lines.length === 0 && panel.key !== 'dse';
const lastDrawn = (panels) => panels.findLastIndex((panel) => !isEmpty(panel));

const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Charts {
  /**
   * @param {HTMLElement} root - gets one `.panel` per panel
   * @param {{choose: function(string, number), zoom: function(?number[])}} actions
   */
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.plots = [];
    this.scene = null;
    this.tooltip = el('div.tooltip', { role: 'status', hidden: true });
    document.body.append(this.tooltip);
    this.size = [0, 0];
    new ResizeObserver(() => this.resize()).observe(root);
  }

  /** Draw a scene; panels and lines that stay keep their plot. */
  draw(scene) {
    this.scene = scene;
    this.root.style.setProperty('--panels', scene.panels.length);
    const shape = JSON.stringify([
      scene.axis,
      scene.panels.map((panel) => [panel.key, panel.log, isEmpty(panel), panel.lines.map((line) => [line.key, line.width, line.dash, !!line.error])]),
    ]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.build();
    } else {
      this.update();
    }
  }

  build() {
    for (const plot of this.plots) plot.u.destroy();
    this.tooltip.hidden = true;
    const [width, heights] = this.measure();
    this.size = [width, this.root.clientHeight];
    this.plots = this.scene.panels.map((panel, index) => ({ panel, header: this.header(panel), index }));
    const boxes = this.plots.map(({ panel, header }) =>
      el('section.panel', { 'data-panel': panel.key, 'aria-label': panel.title }, header.box, el('div.plot')),
    );
    this.root.replaceChildren(...boxes);
    this.plots.forEach((plot, index) => {
      const place = boxes[index].querySelector('.plot');
      place.hidden = isEmpty(plot.panel);
      plot.u = new uPlot(this.options(plot, width, heights[index]), tableOf(plot.panel.lines, this.scene.zoom, width), place);
      this.listen(plot);
    });
  }

  update() {
    const [width] = this.measure();
    this.plots.forEach((plot, index) => {
      plot.panel = this.scene.panels[index];
      plot.header.set(plot.panel);
      plot.u.setData(tableOf(plot.panel.lines, this.scene.zoom, width), false);
      this.scale(plot.u);
    });
  }

  /** Another part of the same lines. */
  zoom(range) {
    this.scene.zoom = range;
    const [width] = this.measure();
    for (const plot of this.plots) {
      if (isThinned(plot.panel.lines)) plot.u.setData(tableOf(plot.panel.lines, range, width), false);
      this.scale(plot.u);
    }
  }

  /** Colours changed, data did not. */
  redraw() {
    for (const plot of this.plots) {
      plot.header.set(plot.panel);
      plot.u.redraw(false, true);
    }
  }

  resize() {
    const [width, heights] = this.measure();
    if (this.root.clientWidth < 50 || (this.size[0] === width && this.size[1] === this.root.clientHeight)) return;
    this.size = [width, this.root.clientHeight];
    this.plots.forEach((plot, index) => !isEmpty(plot.panel) && plot.u.setSize({ width, height: heights[index] }));
  }

  /** Width of the plots, and their heights: what the window leaves, shared by weight, never too little. */
  measure() {
    const width = Math.max(200, this.root.clientWidth);
    const panels = this.scene?.panels ?? [];
    const weights = panels.reduce((sum, panel) => sum + panel.weight * !isEmpty(panel), 0) || 1;
    const room = this.root.clientHeight - panels.length * HEADER_HEIGHT - X_AXIS_HEIGHT - 6;
    const last = lastDrawn(panels);
    const heights = panels.map((panel, i) => {
      if (isEmpty(panel)) return 0;
      return Math.floor(Math.max((room * panel.weight) / weights, panel.weight * LEAST_HEIGHT)) + (i === last ? X_AXIS_HEIGHT : 0);
    });
    return [width, heights];
  }

  scale(u) {
    const [min, max] = this.scene.zoom ?? this.scene.range;
    u.setScale('x', { min, max });
  }

  header(panel) {
    const title = el('h3', {});
    const note = el('span.note', {});
    const reading = el('span.reading', {});
    const tools = el('span.tools', {});
    const set = (now) => {
      title.textContent = now.title;
      title.title = now.explanation;
      note.textContent = now.note ?? '';
      if (now.tools && tools.firstChild !== now.tools) tools.replaceChildren(now.tools);
    };
    set(panel);
    return { box: el('header', {}, title, note, tools, reading), set, reading };
  }

  options(plot, width, height) {
    const scene = this.scene;
    const last = plot.index === lastDrawn(scene.panels);
    const text = () => variable('--text-soft');
    const grid = { stroke: () => variable('--grid'), width: 1 };
    const font = `${variable('--tick-size')} Roboto, Helvetica, Arial, sans-serif`;
    const series = [{ value: () => '' }];
    const bands = [];
    for (const line of plot.panel.lines) {
      series.push({
        label: line.key,
        stroke: line.colour,
        width: line.width,
        dash: line.dash,
        spanGaps: false,
        points: { ...(plot.panel.dots ? {} : { show: false }), size: line.width > 1.5 ? 6 : 5, fill: line.colour, width: 0 },
      });
      if (line.error) {
        const edge = { stroke: null, width: 0, points: { show: false }, spanGaps: false };
        series.push({ ...edge }, { ...edge });
        bands.push({ series: [series.length - 2, series.length - 1], fill: line.band });
      }
    }
    return {
      width,
      height,
      series,
      bands,
      legend: { show: false },
      padding: [8, 12, last ? 0 : 2, 0],
      focus: { alpha: 1 },
      cursor: {
        sync: { key: SYNC, scales: ['x', null] },
        drag: { x: true, y: false, setScale: false, dist: CLICK_PIXELS },
        points: { size: 7 },
        bind: {
          dblclick: () => () => {
            this.actions.zoom(null);
            return null;
          },
        },
      },
      scales: {
        x: { time: scene.axis === 'wall', range: () => this.scene.zoom ?? this.scene.range },
        y: { distr: plot.panel.log ? 3 : 1, range: yRange(plot.panel.log) },
      },
      axes: [
        {
          show: true,
          stroke: text,
          grid,
          ticks: { ...grid, size: last ? 4 : 0 },
          font,
          space: (_, __, ___, ____, length) => Math.max(56, length / 16),
          size: last ? (scene.axis === 'wall' ? X_AXIS_HEIGHT + 12 : X_AXIS_HEIGHT) : 4,
          values: last ? (scene.axis === 'wall' ? timeTexts : tickTexts) : () => [],
        },
        { stroke: text, grid, ticks: { ...grid, size: 4 }, font, size: AXIS_WIDTH, values: tickTexts, space: (_, __, ___, ____, length) => Math.max(22, length / 10) },
      ],
      hooks: {
        drawAxes: [(u) => drawUnder(u, this.scene, plot.panel)],
        draw: [(u) => drawOver(u, this.scene, plot.panel)],
        setSelect: [(u) => this.dragged(u)],
        setCursor: [(u) => this.read(plot, u)],
      },
    };
  }

  dragged(u) {
    if (u.select.width < CLICK_PIXELS) return;
    const low = u.posToVal(u.select.left, 'x');
    const high = u.posToVal(u.select.left + u.select.width, 'x');
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (high > low) this.actions.zoom([low, high]);
  }

  listen(plot) {
    const { u } = plot;
    let pressed = null;
    u.over.addEventListener('mousedown', (event) => (pressed = [event.clientX, event.clientY]));
    u.over.addEventListener('click', (event) => {
      if (!pressed || Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > CLICK_PIXELS) return;
      const found = this.nearest(plot, u.cursor.left, u.cursor.top);
      if (found) this.actions.choose(found.run, found.seq);
    });
    u.over.addEventListener('mouseenter', () => (this.hovered = plot));
    u.over.addEventListener('mouseleave', () => {
      this.hovered = null;
      this.tooltip.hidden = true;
    });
  }

  /** The checkpoint under the pointer: the nearest point of a line or mark. */
  nearest(plot, left, top) {
    const { u } = plot;
    let found = null;
    let least = REACH ** 2;
    const offer = (x, y, run, seq) => {
      const dy = y === null ? 0 : u.valToPos(y, 'y') - top;
      const distance = (u.valToPos(x, 'x') - left) ** 2 + dy ** 2;
      if (distance < least) {
        least = distance;
        found = { run, seq };
      }
    };
    const low = u.posToVal(left - REACH, 'x');
    const high = u.posToVal(left + REACH, 'x');
    for (const line of plot.panel.lines) {
      if (!line.seqs) continue;
      for (let i = 0; i < line.x.length; i++) {
        if (line.x[i] >= low && line.x[i] <= high && Number.isFinite(line.y[i])) offer(line.x[i], line.y[i], line.run, line.seqs[i]);
      }
    }
    if (plot.panel.marked) {
      for (const mark of this.scene.marks.failed) {
        if (mark.x >= low && mark.x <= high) offer(mark.x, u.posToVal(u.over.clientHeight - 9, 'y'), mark.run, mark.seq);
      }
    }
    return found;
  }

  /** Numbers under the cursor: beside every panel's title for the run in focus, and in a tooltip for all lines. */
  read(plot, u) {
    const { left, top } = u.cursor;
    if (left === undefined || left < 0) {
      plot.header.reading.textContent = '';
      if (this.hovered === plot) this.tooltip.hidden = true;
      return;
    }
    const x = u.posToVal(left, 'x');
    const found = plot.panel.lines.map((line) => ({ line, i: nearestIndex(line.x, x) })).filter(({ i }) => i >= 0);
    const first = found.find(({ line }) => line.focus) ?? found[0];
    if (first) {
      plot.header.reading.textContent = `${this.at(first.line.x[first.i])}  ${valueText(first.line, first.i, plot.panel)}`;
    }
    if (this.hovered !== plot) return;
    const rows = found
      .filter(({ line, i }) => Number.isFinite(line.y[i]))
      .sort((a, b) => b.line.y[b.i] - a.line.y[a.i])
      .slice(0, 12)
      .map(({ line, i }) =>
        el(
          'tr',
          {},
          el('td', {}, el('i.swatch', { style: { background: line.colour() } })),
          el('td', { text: line.label }),
          el('td.value', { text: valueText(line, i, plot.panel) }),
          el('td.soft', { text: this.at(line.x[i]) }),
        ),
      );
    const marks = plot.panel.marked ? markTexts(u, this.scene, left, top) : [];
    this.tooltip.replaceChildren(el('table', {}, ...rows), ...marks.map((text) => el('p', { text })));
    this.tooltip.hidden = rows.length + marks.length === 0;
    this.place(u, left, top);
  }

  at(x) {
    return this.scene.axis === 'wall' ? moment(x) : position(this.scene.axis, x);
  }

  place(u, left, top) {
    const box = u.over.getBoundingClientRect();
    const { offsetWidth: w, offsetHeight: h } = this.tooltip;
    const x = left + 18 + w > box.width ? left - w - 18 : left + 18;
    const y = Math.min(Math.max(box.top + top - h / 2, 4), window.innerHeight - h - 4);
    this.tooltip.style.left = `${Math.max(4, box.left + x)}px`;
    this.tooltip.style.top = `${y}px`;
  }

  /** All panels below one another on one canvas, with their titles. */
  picture() {
    const ratio = devicePixelRatio || 1;
    const [width] = this.measure();
    const total = this.plots.reduce((sum, plot) => sum + (isEmpty(plot.panel) ? 0 : plot.u.height) + HEADER_HEIGHT, 0);
    const canvas = el('canvas', { width: width * ratio, height: total * ratio });
    const context = canvas.getContext('2d');
    context.fillStyle = variable('--surface');
    context.fillRect(0, 0, canvas.width, canvas.height);
    let y = 0;
    for (const plot of this.plots) {
      context.fillStyle = variable('--text');
      context.font = `500 ${13 * ratio}px Roboto, Helvetica, Arial, sans-serif`;
      context.fillText(`${plot.panel.title}   ${plot.panel.note ?? ''}`, 12 * ratio, (y + 18) * ratio);
      if (!isEmpty(plot.panel)) context.drawImage(plot.u.ctx.canvas, 0, (y + HEADER_HEIGHT) * ratio);
      y += (isEmpty(plot.panel) ? 0 : plot.u.height) + HEADER_HEIGHT;
    }
    return new Promise((done) => canvas.toBlob(done, 'image/png'));
  }
}

function valueText(line, i, panel) {
  const value = number(line.y[i], panel.decimals);
  return line.error && Number.isFinite(line.error[i]) ? `${value} ± ${number(line.error[i], panel.decimals)}` : value;
}
