/** What keys do: see the description of the charts, which is read aloud, and the titles of the controls. */

const TYPED = 'input:not([type=checkbox], [type=range]), select, textarea';

/** Step through the line of the run in focus, or act on the charts. */
export function chartKey(app, event) {
  const run = app.runs.get(app.view.focus);
  if (!run?.line?.rows.length || event.ctrlKey || event.metaKey || event.altKey) return;
  const { line, points } = run;
  const seqs = line.rows.map((row) => points.columns.seq[row]);
  const current = app.view.chosen ? seqs.indexOf(app.view.chosen) : line.best;
  const target = {
    ArrowLeft: Math.max(0, current - 1),
    ArrowRight: Math.min(seqs.length - 1, current + 1),
    Home: 0,
    End: seqs.length - 1,
  }[event.key];
  if (target === undefined) return;
  app.choose(run.id, seqs[target]);
  event.preventDefault();
}

/** Keys of the page as a whole; none while a text is typed. */
export function pageKey(app, event) {
  if (event.target.matches(TYPED) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === 'Escape') app.zoom(null);
  else if (event.key === 'b' || event.key === 'B') app.set({ chosen: null });
  else if (event.key === '/') {
    app.list.search.focus();
    event.preventDefault();
  }
}
