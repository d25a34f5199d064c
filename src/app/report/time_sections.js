// The parts of the report that tell of time: by token and cause, its distribution, the slow tokens.
'use strict';
const TimeSections = (() => {
  const {format} = Charts;
  const {make, table, table_behind, section, chart} = Elements;
  const MS = 1e6;

  // Causes that are drawn as one, from the top of a bar down; what stands in no group goes to the
  // last. Eight colours are as many as can be told apart.
  const GROUPS = [
    {name: 'waiting for the drive', causes: ['wait_drive'], colour: 'vermillion'},
    {name: 'verifying', causes: ['hash'], colour: 'orange'},
    {name: 'cache', causes: ['cache'], colour: 'yellow'},
    {name: 'router, look-ahead', causes: ['router', 'lookahead'], colour: 'purple'},
    {name: 'output', causes: ['output'], colour: 'sky'},
    {name: 'attention', causes: ['attention'], colour: 'blue'},
    {name: 'experts', causes: ['experts'], colour: 'green'},
    {name: 'sampling, caller, record, CPU taken, other',
     causes: ['sample', 'caller', 'record', 'descheduled', 'other'], colour: 'neutral'},
  ];

  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const percent = (share) => `${format(100 * share)} %`;
  const count = (n, unit) => `${n.toLocaleString('en')} ${unit}${n === 1 ? '' : 's'}`;

  function groups_of(run) {
    const named = new Set(GROUPS.flatMap((group) => group.causes));
    const others = run.causes.filter((cause) => !named.has(cause));
    return GROUPS.map((group, i) => ({...group, causes:
        i === GROUPS.length - 1 ? [...group.causes, ...others] : group.causes}));
  }
  const time_of = (run, causes, row) =>
      sum(causes.map((cause) => (run.tokens.causes[cause] || [])[row] || 0));
  const name_of = (run, row) => `${run.unit} ${row}` +
      (run.repetitions > 1 ? ` (repetition ${run.tokens.repetition[row]})` : '');

  function zoom_buttons(zoom, unit) {
    const button = (text, what, wider, aside) => {
      const node = make('button', {type: 'button', 'aria-label': what}, text);
      node.addEventListener('click', () => zoom.change(wider, aside));
      return node;
    };
    return make('p', {class: 'hint', role: 'group', 'aria-label': `which ${unit}s are shown`},
        button('+', 'zoom in', 0.5, 0), ' ', button('−', 'zoom out', 2, 0), ' ',
        button('◂', 'move left', 1, -0.5), ' ', button('▸', 'move right', 1, 0.5), ' ',
        button('all', 'show all', Infinity, 0));
  }

  function timeline(run, zoom) {
    const groups = groups_of(run);
    const {wall_ns} = run.tokens;
    const rows = wall_ns.map((_, row) =>
        [row, ...groups.map((group) => time_of(run, group.causes, row) / MS)]);
    const says = (row) => `${name_of(run, row)}: ${format(wall_ns[row] / MS)} ms = ` + groups
        .map((group, g) => [group.name, rows[row][g + 1]]).filter(([, ms]) => ms > 0)
        .sort((a, b) => b[1] - a[1]).map(([name, ms]) => `${name} ${format(ms)}`).join(', ') +
        `; ${run.tokens.ram_hits[row]} experts from RAM, ${run.tokens.drive_reads[row]} read`;
    const total = sum(wall_ns);
    const shares = run.causes.map((cause) => ({cause, ns: sum(run.tokens.causes[cause])}))
        .sort((a, b) => b.ns - a.ns);
    return section(`Where each ${run.unit}’s time went`,
        make('p', {class: 'hint quiet'}, 'Drag to zoom, hold Shift and drag to move, ' +
            'double-click to see all; the charts of bandwidth follow.'),
        zoom_buttons(zoom, run.unit),
        chart(`Time of every ${run.unit}, stacked by cause`, {
          series: groups, rows, says, zoom, stackedGraph: true, plotter: Charts.stacked_bars,
          showRangeSelector: rows.length > 1, xlabel: run.unit, ylabel: 'ms',
          dateWindow: [-0.5, rows.length - 0.5], xRangePad: 12,
          underlayCallback: Charts.top_marks(run.spikes.map((spike) => spike.token)),
        }, {hint: 'Every nanosecond is in exactly one cause.' +
            (run.spikes.length === 0 ? '' : ' ▾ marks the slow tokens that are listed below.')}),
        table('Shares by cause', [
          {name: 'cause', of: (row) => row.cause},
          {name: `ms per ${run.unit}`, number: true,
           of: (row) => format(row.ns / MS / wall_ns.length)},
          {name: 'share', number: true, of: (row) => percent(row.ns / Math.max(total, 1))},
        ], shares),
        table_behind(`every ${run.unit}`, [
          {name: run.unit, of: (row) => name_of(run, row)},
          {name: 'ms', number: true, of: (row) => format(wall_ns[row] / MS)},
          ...run.causes.map((cause) => ({name: `${cause} ms`, number: true,
            of: (row) => format(run.tokens.causes[cause][row] / MS)})),
          {name: 'from RAM', number: true, of: (row) => String(run.tokens.ram_hits[row])},
          {name: 'read', number: true, of: (row) => String(run.tokens.drive_reads[row])},
          {name: 'queue depth', number: true, of: (row) => String(run.tokens.queue_depth[row])},
          {name: 'CPU ms', number: true, of: (row) => format(run.tokens.cpu_ns[row] / MS)},
        ], () => wall_ns.map((_, row) => row)));
  }

  // Bins of equal width on the axis of logarithms, at most 60, each at least 1 % wide. `logs`
  // ascend.
  function bins_of(logs) {
    const from = logs[0], to = logs[logs.length - 1];
    const n = Math.max(1, Math.min(60, Math.ceil((to - from) / Math.log10(1.01)),
                                   Math.ceil(2 * Math.sqrt(logs.length))));
    const width = Math.max((to - from) / n, Math.log10(1.01));
    const bins = Array.from({length: n}, (_, i) =>
        ({from: from + i * width, to: from + (i + 1) * width, count: 0}));
    for (const value of logs) ++bins[Math.min(n - 1, Math.floor((value - from) / width))].count;
    return bins;
  }

  function latency(run) {
    const sorted = run.tokens.wall_ns.map((ns) => Math.max(ns, 1) / MS).sort((a, b) => a - b);
    const logs = sorted.map(Math.log10);
    const bins = bins_of(logs);
    const marks = [['p50', run.itl_ms.p50], ['p90', run.itl_ms.p90], ['p99', run.itl_ms.p99]]
        .filter(([, ms]) => ms > 0)
        .map(([name, ms]) => ({x: Math.log10(ms), text: `${name} ${format(ms)} ms`}));
    const axis = {x_ticks: Charts.log_ticks, xlabel: 'ms', xRangePad: 12};
    const first = bins[0].from, last = bins[bins.length - 1].to;
    // Two rows at least, so that the axis spans all bins.
    const bin_rows = [[first, 0], ...bins.map((bin) => [(bin.from + bin.to) / 2, bin.count]),
                      [last, 0]];
    return section(`Time from one ${run.unit} to the next`,
        make('p', {class: 'quiet'}, 'The axes of time are logarithmic. Percentiles by nearest ' +
            'rank: each was measured.'),
        make('div', {class: 'pair'},
            chart(`How many ${run.unit}s took how long`, {
              ...axis, series: [{colour: 'blue'}], rows: bin_rows, ylabel: `${run.unit}s`,
              plotter: Charts.histogram_bars(bins), underlayCallback: Charts.vertical_marks(marks),
              says: (row) => (row < 1 || row > bins.length ? '' :
                  `${count(bins[row - 1].count, run.unit)} of ` +
                  `${format(10 ** bins[row - 1].from)} to ${format(10 ** bins[row - 1].to)} ms`),
            }, {low: true}),
            chart(`Share of ${run.unit}s that took at most so long`, {
              ...axis, series: [{colour: 'blue'}], y_top: 102, stepPlot: true, ylabel: '%',
              underlayCallback: Charts.vertical_marks(marks, {low: true}),
              rows: [[first, 0], ...logs.map((x, i) => [x, 100 * (i + 1) / logs.length]),
                     [last, 100]],
              says: (row) => (row < 1 || row > logs.length ? '' :
                  `${percent(row / logs.length)} took ${format(sorted[row - 1])} ms or less`),
            }, {low: true})),
        table('Percentiles', [
          {name: '', of: (row) => row[0]},
          {name: 'ms', number: true, of: (row) => format(row[1])},
        ], [...[['p50', 'p50'], ['p90', 'p90'], ['p99', 'p99'], ['p99.9', 'p999'], ['max', 'max']]
            .map(([name, key]) => [name, run.itl_ms[key]]),
            ['prompt to first token (TTFT)', run.ttft_ms]]),
        table_behind('histogram', [
          {name: 'from ms', number: true, of: (bin) => format(10 ** bin.from)},
          {name: 'to ms', number: true, of: (bin) => format(10 ** bin.to)},
          {name: `${run.unit}s`, number: true, of: (bin) => String(bin.count)},
        ], () => bins));
  }

  function spikes(run, zoom) {
    const n = run.tokens.wall_ns.length;
    const button = (spike) => {
      const node = make('button', {type: 'button'}, 'show');
      node.setAttribute('aria-label', `show token ${spike.token} in the timeline`);
      node.addEventListener('click', () => {
        zoom.show(Math.max(spike.token - 20, -0.5), Math.min(spike.token + 20, n - 0.5));
        document.getElementById('main').scrollIntoView({block: 'start'});
      });
      return node;
    };
    if (run.spikes.length === 0)
      return section('Slow tokens', make('p', {}, 'No token took 25 % more than the median.'));
    return section('Slow tokens',
        table('The slowest of those that took 25 % more than the median', [
          {name: 'what happened', of: (spike) => spike.sentence},
          {name: 'cause', word: true, of: (spike) => spike.cause},
          {name: 'over the median, ms', number: true, of: (spike) => format(spike.excess_ns / MS)},
          {name: 'would have helped', of: (spike) => spike.remedy},
          {name: '', word: true, of: button},
        ], run.spikes),
        table('All of them, by cause', [
          {name: 'cause', of: (one) => one.cause},
          {name: 'tokens', number: true, of: (one) => String(one.tokens)},
          {name: 'over the median in all, ms', number: true,
           of: (one) => format(one.excess_ns / MS)},
          {name: 'would have helped', of: (one) => one.remedy},
        ], run.spike_classes));
  }

  return {timeline, latency, spikes, percent, sum};
})();
