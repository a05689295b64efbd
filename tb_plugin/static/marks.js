/**
 * What is drawn on the curves: best, candidates, alerts, failures, resumed segments, the chosen checkpoint. Every mark has
 * a shape of its own, so that none depends on colour.
 */

import { short } from './dom.js';

const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Alert spans and vertical lines, below the curves. */
export function drawUnder(u, scene, panel) {
  const { ctx } = u;
  const ratio = devicePixelRatio || 1;
  const { left, top, width, height } = u.bbox;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  ctx.fillStyle = variable('--alert-span');
  for (const span of scene.marks.spans) {
    const from = u.valToPos(span.from, 'x', true);
    const to = Number.isFinite(span.to) ? u.valToPos(span.to, 'x', true) : left + width;
    ctx.fillRect(from, top, Math.max(to - from, 2 * ratio), height);
  }
  for (const x of scene.marks.resumed) line(u, x, variable('--text-faint'), [2, 3]);
  for (const mark of scene.marks.best.filter((item) => item.focus)) line(u, mark.x, variable('--best'), []);
  if (scene.marks.chosen) line(u, scene.marks.chosen.x, variable('--text-soft'), [5, 3]);
  if (panel.zero !== undefined) {
    const y = u.valToPos(panel.zero, 'y', true);
    ctx.strokeStyle = variable('--text-faint');
    ctx.lineWidth = ratio;
    ctx.beginPath();
    ctx.moveTo(left, y);
    ctx.lineTo(left + width, y);
    ctx.stroke();
  }
  ctx.restore();
}

function line(u, x, colour, dash) {
  const { ctx, bbox } = u;
  const ratio = devicePixelRatio || 1;
  const at = Math.round(u.valToPos(x, 'x', true)) + 0.5;
  ctx.strokeStyle = colour;
  ctx.lineWidth = ratio;
  ctx.globalAlpha = 0.75;
  ctx.setLineDash(dash.map((part) => part * ratio));
  ctx.beginPath();
  ctx.moveTo(at, bbox.top);
  ctx.lineTo(at, bbox.top + bbox.height);
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
}

/** Marks, above the curves of the panel that carries them. */
export function drawOver(u, scene, panel) {
  if (!panel.marked) return;
  const { ctx } = u;
  const ratio = devicePixelRatio || 1;
  const { left, top, width, height } = u.bbox;
  const { marks } = scene;
  const surface = variable('--surface');
  const place = (mark) => [u.valToPos(mark.x, 'x', true), u.valToPos(mark.y, 'y', true)];
  const inside = (x) => x >= left - 1 && x <= left + width + 1;
  ctx.save();
  ctx.lineJoin = 'round';
  ctx.textAlign = 'center';
  ctx.textBaseline = 'middle';

  for (const mark of marks.estimated) ring(ctx, place(mark), 3 * ratio, mark.colour(), surface, ratio);
  for (const mark of marks.superseded) ring(ctx, place(mark), 2.5 * ratio, variable('--text-faint'), surface, ratio);
  for (const mark of marks.failed) {
    const x = u.valToPos(mark.x, 'x', true);
    if (inside(x)) hollowCross(ctx, x, top + height - 9 * ratio, 6 * ratio, variable('--text-soft'), surface, ratio);
  }
  if (marks.chosen && Number.isFinite(marks.chosen.y)) {
    const [x, y] = place(marks.chosen);
    if (inside(x)) ring(ctx, [x, y], 7 * ratio, variable('--text'), null, 1.5 * ratio);
  }
  for (const mark of marks.alerts) {
    const [x, y] = place(mark);
    if (inside(x)) triangle(ctx, x, Math.max(y - 15 * ratio, top + 7 * ratio), 6 * ratio, mark.firing, surface, ratio);
  }
  for (const mark of marks.candidates) {
    const [x, y] = place(mark);
    if (!inside(x)) continue;
    const above = Math.max(y - 16 * ratio, top + 8 * ratio);
    ring(ctx, [x, above], 7 * ratio, variable('--best'), surface, 1.5 * ratio);
    ctx.fillStyle = variable('--best');
    ctx.font = `600 ${10 * ratio}px Roboto, Helvetica, Arial, sans-serif`;
    ctx.fillText(String(mark.rank), x, above + 0.5 * ratio);
  }
  for (const mark of marks.best) {
    const [x, y] = place(mark);
    if (inside(x)) star(ctx, x, y, (mark.focus ? 8 : 6) * ratio, mark.told, surface, ratio);
  }
  ctx.restore();
}

function ring(ctx, [x, y], radius, stroke, fill, width) {
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  if (fill) {
    ctx.fillStyle = fill;
    ctx.fill();
  }
  ctx.strokeStyle = stroke;
  ctx.lineWidth = width;
  ctx.stroke();
}

/** Filled: the best at the lambda shown. Hollow: the watcher's best, where that is another one. */
function star(ctx, x, y, radius, hollow, surface, ratio) {
  ctx.beginPath();
  for (let i = 0; i < 10; i++) {
    const r = i % 2 ? radius * 0.45 : radius;
    const angle = -Math.PI / 2 + (i * Math.PI) / 5;
    ctx.lineTo(x + r * Math.cos(angle), y + r * Math.sin(angle));
  }
  ctx.closePath();
  ctx.fillStyle = hollow ? surface : variable('--best');
  ctx.strokeStyle = hollow ? variable('--best') : surface;
  ctx.lineWidth = 1.5 * ratio;
  ctx.stroke();
  ctx.fill();
  if (hollow) ctx.stroke();
}

function triangle(ctx, x, y, size, filled, surface, ratio) {
  ctx.beginPath();
  ctx.moveTo(x, y - size);
  ctx.lineTo(x + size, y + size * 0.75);
  ctx.lineTo(x - size, y + size * 0.75);
  ctx.closePath();
  ctx.strokeStyle = variable('--alert');
  ctx.fillStyle = filled ? variable('--alert') : surface;
  ctx.lineWidth = 1.5 * ratio;
  ctx.fill();
  ctx.stroke();
}

function hollowCross(ctx, x, y, size, stroke, fill, ratio) {
  const thin = size * 0.3;
  const outline = [[-thin, -size], [thin, -size], [thin, -thin], [size, -thin], [size, thin], [thin, thin], [thin, size], [-thin, size], [-thin, thin], [-size, thin], [-size, -thin], [-thin, -thin]];
  ctx.save();
  ctx.translate(x, y);
  ctx.rotate(Math.PI / 4);
  ctx.beginPath();
  for (const [dx, dy] of outline) ctx.lineTo(dx, dy);
  ctx.closePath();
  ctx.fillStyle = fill;
  ctx.strokeStyle = stroke;
  ctx.lineWidth = ratio;
  ctx.fill();
  ctx.stroke();
  ctx.restore();
}

const NEAR = 9; // px

/** Words for the marks under the pointer. */
export function markTexts(u, scene, left, top) {
  const near = (mark, lift = 0) =>
    Math.abs(u.valToPos(mark.x, 'x') - left) < NEAR &&
    (mark.y === undefined || Math.abs(u.valToPos(mark.y, 'y') - lift - top) < NEAR + 4);
  const { marks } = scene;
  return [
    ...marks.best.filter((mark) => near(mark)).map((mark) => `★ ${mark.text}`),
    ...marks.candidates.filter((mark) => near(mark, 16)).map((mark) => mark.text),
    ...marks.alerts.filter((mark) => near(mark, 15)).map((mark) => `▲ ${mark.text}`),
    ...marks.failed.filter((mark) => near(mark) && top > u.over.clientHeight - 22).map((mark) => `✕ ${mark.text()}`),
  ].map((text) => short(text, 240));
}
