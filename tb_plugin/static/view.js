/** What somebody chose, and where it is kept: the address, so that a link shows the same, and the browser's memory. */

import { AXES } from './axes.js';
import { readAddress, runFilter, writeAddress } from './host.js';
import { KINDS } from './images.js';
import { PANELS } from './scene.js';

const USUAL = PANELS.filter((panel) => panel.on).map((panel) => panel.key);

/** Nothing chosen yet. */
export function newView() {
  return {
    shown: null, // Set of run ids once known; null: the newest
    ownChoice: false, // somebody chose them
    focus: null,
    filter: runFilter(),
    sort: 'start',
    descending: true,
    lambda: null,
    axis: null,
    zoom: null,
    chosen: null,
    panels: new Set(USUAL),
    logLoss: false,
    tag: '',
    colours: {},
    maps: KINDS[0].key,
    companionNames: [],
  };
}

/** A part of an address in plain text; unchanged where it is damaged. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Take over what the address says. */
export function applyAddress(view) {
  const told = readAddress();
  if (told.runs !== undefined) {
    view.shown = new Set(told.runs.split(',').map(decoded));
    view.ownChoice = true;
  }
  if (told.focus) view.focus = told.focus;
  if (told.filter !== undefined) view.filter = told.filter;
  if (AXES.includes(told.axis)) view.axis = told.axis;
  const lambda = Number(told.lam);
  if (told.lam !== undefined) view.lambda = Number.isFinite(lambda) && lambda >= 0 ? lambda : null;
  const zoom = (told.zoom ?? '').split(',').map(Number);
  view.zoom = zoom.length === 2 && zoom.every(Number.isFinite) && zoom[1] > zoom[0] ? zoom : null;
  const chosen = Number(told.at);
  view.chosen = told.at && Number.isSafeInteger(chosen) ? chosen : null;
  if (told.panels !== undefined) view.panels = new Set(told.panels.split(',').filter(Boolean).map(decoded));
  if (told.tag) view.tag = told.tag;
  if (KINDS.some(({ key }) => key === told.maps)) view.maps = told.maps;
  if (told.log !== undefined) view.logLoss = told.log === '1';
  for (const key of view.panels) {
    const name = key.startsWith('companion:') ? key.slice(10) : '';
    if (name && !view.companionNames.includes(name)) view.companionNames.push(name);
  }
}

/** Take over what was chosen at an earlier visit. */
export function recall(view, memory) {
  const kept = memory.read();
  if (Array.isArray(kept.shown)) {
    view.shown = new Set(kept.shown);
    view.ownChoice = true;
  }
  if (Array.isArray(kept.panels)) view.panels = new Set(kept.panels);
  if (typeof kept.tag === 'string') view.tag = kept.tag;
  if (typeof kept.logLoss === 'boolean') view.logLoss = kept.logLoss;
  for (const [id, colour] of Object.entries(kept.colours ?? {})) {
    if (/^#[0-9a-f]{6}$/i.test(colour)) view.colours[id] = colour;
  }
}

/** Write down what is chosen. */
export function remember(view, memory) {
  const panels = [...view.panels];
  const shown = view.ownChoice && view.shown ? [...view.shown] : null;
  memory?.write({ shown, panels, tag: view.tag, logLoss: view.logLoss, colours: view.colours });
  writeAddress({
    runs: shown && shown.map(encodeURIComponent).join(','),
    focus: view.focus,
    filter: view.filter,
    axis: view.axis,
    lam: view.lambda,
    zoom: view.zoom && view.zoom.map((edge) => Number(edge.toPrecision(12))).join(','),
    at: view.chosen,
    panels: panels.join() === USUAL.join() ? null : panels.map(encodeURIComponent).join(','),
    tag: view.tag,
    log: view.logLoss ? 1 : null,
    maps: view.maps === KINDS[0].key ? null : view.maps,
  });
}
