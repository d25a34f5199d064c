// Charts on dygraphs: colours, axes, plotters, and zoom that charts share. Knows no report.
'use strict';
const Charts = (() => {
  // Okabe and Ito, "Color Universal Design" (2008). Canvases don't follow style sheets, and one
  // that is drawn anew for the printer stays blank: instead of black there is a grey that stands
  // out from a white page and from a dark one.
  const COLOURS = {
    vermillion: '#D55E00',
    green: '#009E73',
    blue: '#0072B2',
    sky: '#56B4E9',
    orange: '#E69F00',
    purple: '#CC79A7',
    yellow: '#F0E442',
    neutral: '#767676',
    line: '#A8A8A4',
  };
  const DASHES = [7, 4];

  const colour = (name) => COLOURS[name];

  // Three digits that count, without an exponent.
  function format(value) {
    if (value === null || !Number.isFinite(value)) return '–';
    const size = Math.abs(value);
    if (size >= 100 || size === 0) return Math.round(value).toLocaleString('en');
    return value.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : size >= 0.1 ? 3 : 4);
  }

  // Ticks at 1, 2 and 5 times a power of ten, for an axis of decimal logarithms.
  function log_ticks(from, to) {
    const ticks = [];
    for (let power = Math.floor(from); power <= Math.ceil(to); ++power)
      for (const digit of [1, 2, 5]) {
        const v = power + Math.log10(digit);
        if (v >= from && v <= to) ticks.push({v, label: tick_label(digit, power)});
      }
    return ticks;
  }
  function tick_label(digit, power) {
    const value = digit * 10 ** power;
    return power < 0 ? value.toFixed(-power) : value.toLocaleString('en');
  }
  // Whole numbers only: of tokens, of layers.
  function whole_ticks(from, to, pixels) {
    const wished = Math.max(2, pixels / 70);
    let step = 10 ** Math.floor(Math.log10(Math.max((to - from) / wished, 1)));
    for (const factor of [1, 2, 5, 10])
      if ((to - from) / (step * factor) <= wished) { step *= factor; break; }
    const ticks = [];
    for (let v = Math.ceil(from / step) * step; v <= to; v += step)
      ticks.push({v, label: (v + 0).toLocaleString('en')});  // no -0
    return ticks;
  }

  // dygraphs stacks from the last series up: the first is the tallest and is drawn first, the
  // others over it. Bars are a pixel wide at least, so that a slow token shows among ten thousand.
  function stacked_bars(e) {
    const g = e.dygraph, ground = g.toDomYCoord(0);
    const step = Math.abs(g.toDomXCoord(1) - g.toDomXCoord(0)) || 1;  // NaN: no width is shown
    const width = Math.max(1, step > 4 ? step * 0.9 : step);
    e.drawingContext.fillStyle = e.color;
    for (const point of e.points)
      e.drawingContext.fillRect(point.canvasx - width / 2, point.canvasy, width,
                                ground - point.canvasy);
  }
  // A series that has one value: as a line of many points its dashes would begin anew at each.
  function flat_line(e) {
    const {drawingContext: context, plotArea: area, points, color} = e;
    context.save();
    context.strokeStyle = color;
    context.lineWidth = 2;
    context.setLineDash(DASHES);
    context.beginPath();
    context.moveTo(area.x, points[0].canvasy);
    context.lineTo(area.x + area.w, points[0].canvasy);
    context.stroke();
    context.restore();
  }
  // bins: [{from, to, count}] in units of the axis.
  function histogram_bars(bins) {
    return (e) => {
      const g = e.dygraph, ground = g.toDomYCoord(0);
      e.drawingContext.fillStyle = e.color;
      for (const bin of bins) {
        const left = g.toDomXCoord(bin.from), top = g.toDomYCoord(bin.count);
        e.drawingContext.fillRect(left, top, Math.max(g.toDomXCoord(bin.to) - left - 1, 1),
                                  ground - top);
      }
    };
  }
  // marks: [{x, text}], each text a line lower than the one before; with `low` from the ground up,
  // for curves that run along the top.
  function vertical_marks(marks, {low = false} = {}) {
    return (context, area, g) => {
      context.save();
      context.strokeStyle = context.fillStyle = COLOURS.neutral;
      context.font = '12px system-ui, sans-serif';
      marks.forEach((mark, i) => {
        const x = g.toDomXCoord(mark.x);
        if (x < area.x || x > area.x + area.w) return;
        const at_right = x > area.x + 0.75 * area.w;
        context.setLineDash(DASHES);
        context.beginPath();
        context.moveTo(x, area.y);
        context.lineTo(x, area.y + area.h);
        context.stroke();
        context.textAlign = at_right ? 'right' : 'left';
        context.fillText(mark.text, x + (at_right ? -4 : 4),
            low ? area.y + area.h - 14 * (marks.length - i) + 8 : area.y + 14 * (i + 1));
      });
      context.restore();
    };
  }

  // Arrowheads at the top that point down at each x.
  function top_marks(xs) {
    return (context, area, g) => {
      context.fillStyle = COLOURS.neutral;
      for (const at of xs) {
        const x = g.toDomXCoord(at);
        if (!(x >= area.x && x <= area.x + area.w)) continue;
        context.beginPath();
        context.moveTo(x - 4, area.y);
        context.lineTo(x + 4, area.y);
        context.lineTo(x, area.y + 7);
        context.closePath();
        context.fill();
      }
    };
  }

  // Charts that show the same tokens show the same part of them.
  class SharedZoom {
    constructor(n) {
      this.ends = [-0.5, n - 0.5];
      this.charts = [];
      this.busy = false;
    }
    join(chart) { this.charts.push(chart); }
    follow(leader) {
      if (this.busy) return;
      this.busy = true;
      const dateWindow = leader.xAxisRange();
      for (const chart of this.charts)
        if (chart !== leader) chart.updateOptions({dateWindow});
      this.busy = false;
    }
    show(from, to) {
      if (this.charts.length !== 0) this.charts[0].updateOptions({dateWindow: [from, to]});
    }
    // Without a mouse: the part that is shown, `wider` times as wide, `aside` of its width to the
    // right; never past the ends.
    change(wider, aside) {
      if (this.charts.length === 0) return;
      const [from, to] = this.charts[0].xAxisRange();
      const [first, last] = this.ends;
      const width = Math.min((to - from) * wider, last - first);
      const wished = (from + to - width) / 2 + aside * width;
      const begin = Math.max(first, Math.min(wished, last - width));
      this.show(begin, begin + width);
    }
  }

  const living = [];
  function destroy_all() {
    for (const chart of living.splice(0)) chart.destroy();
  }

  // series: [{colour, dashed, flat}]; rows: [[x, y, …]]; `says(row)` is read out for the row under
  // the pointer. The other options are dygraphs'. No label of ours reaches dygraphs, which sets them
  // as HTML: series are s0, s1, …; axes' titles are fixed words.
  function draw(place, readout, {series, rows, says, zoom, x_ticks, y_top, ...options}) {
    const silent = readout ? readout.textContent : '';
    const names = series.map((_, i) => `s${i}`);
    const settings = {
      labels: ['x', ...names],
      colors: series.map((one) => colour(one.colour)),
      series: Object.fromEntries(names.map((name, i) =>
          [name, series[i].flat ? {plotter: flat_line} :
                 series[i].dashed ? {strokePattern: DASHES, strokeWidth: 2} : {}])),
      legend: 'never',
      includeZero: true,
      strokeWidth: 1.5,
      axisLineColor: COLOURS.line,
      gridLineColor: COLOURS.line,
      gridLineWidth: 0.4,
      rangeSelectorPlotStrokeColor: colour('blue'),
      rangeSelectorPlotFillColor: colour('sky'),
      rangeSelectorPlotFillGradientColor: colour('sky'),
      rangeSelectorForegroundStrokeColor: COLOURS.neutral,
      axes: {
        x: {ticker: x_ticks || whole_ticks, axisLabelFormatter: (v) => format(v)},
        y: {axisLabelFormatter: (v) => format(v), axisLabelWidth: 60},
      },
      highlightCallback: (event, x, points, row) => {
        if (readout && says) readout.textContent = says(row);
      },
      unhighlightCallback: () => { if (readout) readout.textContent = silent; },
      ...(y_top ? {valueRange: [0, y_top]} : {}),
      ...(zoom ? {drawCallback: (chart, first) => { if (!first) zoom.follow(chart); }} : {}),
      ...options,
    };
    const chart = new Dygraph(place, rows, settings);
    if (zoom) zoom.join(chart);
    living.push(chart);
    return chart;
  }

  return {colour, format, log_ticks, whole_ticks, stacked_bars, histogram_bars, vertical_marks,
          top_marks, SharedZoom, draw, destroy_all, count: () => living.length};
})();
