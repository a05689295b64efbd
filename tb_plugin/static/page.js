/** The page's regions, still empty. */

import { el } from './dom.js';

/**
 * Lay the regions out.
 * @param {HTMLElement} body
 * @param {HTMLElement} toolbar
 * @param {function(KeyboardEvent)} onKey - for keys pressed on the charts
 * @returns {Object<string, HTMLElement>} the regions by name
 */
export function layOut(body, toolbar, onKey) {
  const answer = el('div.answer', { role: 'status', 'aria-live': 'polite' });
  const banners = el('div.banners', {});
  const chartRoot = el('div.charts', {
    tabIndex: 0,
    role: 'group',
    'aria-label': 'Charts over checkpoints. Arrow keys choose a checkpoint, B the best, Escape resets the zoom.',
    onkeydown: onKey,
  });
  const runRail = el('aside.rail.runs-rail', { 'aria-label': 'Runs' });
  const cardRoot = el('section.card', { 'aria-label': 'Checkpoint' });
  const mapRoot = el('section.maps-section', { 'aria-label': 'Feature maps' });
  const sideRail = el('aside.rail.side-rail', { 'aria-label': 'Details' }, cardRoot, mapRoot);
  const alertRoot = el('section.alert-section', { 'aria-label': 'Alerts' });
  const main = el(
    'div.main',
    {},
    runRail,
    el('main.centre', {}, toolbar, banners, chartRoot),
    sideRail,
  );
  const empty = el('div.empty', { hidden: true });
  const skeleton = el('div.skeleton', { 'aria-label': 'Loading' }, ...[2, 1, 1, 1].map((grow) => el('div', { style: { 'flex-grow': grow } })));
  body.replaceChildren(el('div.page', {}, answer, skeleton, empty, main, alertRoot));
  main.hidden = true;
  alertRoot.hidden = true;
  return { answer, banners, chartRoot, runRail, cardRoot, mapRoot, alertRoot, main, empty, skeleton };
}
