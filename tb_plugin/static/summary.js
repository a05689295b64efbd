/** For tests: what is on the page, as plain data. */
export function summary(app) {
  return {
    runs: [...app.runs.values()].map((run) => ({
      id: run.id,
      name: run.name,
      rows: run.points?.rows ?? null,
      line: run.line ? { axis: run.line.axis, lambda: run.line.lambda, best: run.line.best, candidates: run.line.candidates, length: run.line.rows.length } : null,
      lossTag: run.lossTag ?? null,
      lossRows: run.loss?.rows ?? null,
      alerts: run.alerts?.length ?? null,
    })),
    drawn: (app.drawn ?? []).map((run) => run.id),
    focus: app.view.focus,
    view: { ...app.view, shown: [...(app.view.shown ?? [])], panels: [...app.view.panels] },
    panels: app.charts.plots.map((plot) => ({ key: plot.panel.key, rows: plot.u.data[0].length, x: [plot.u.scales.x.min, plot.u.scales.x.max] })),
    marks: app.charts.scene
      ? Object.fromEntries(Object.entries(app.charts.scene.marks).map(([key, value]) => [key, Array.isArray(value) ? value.length : value]))
      : null,
    timings: app.store.timings,
  };
}
