// The parts of the report that tell of tiers: hits by layer, bandwidth, other cache sizes.
'use strict';
const TierSections = (() => {
  const {format} = Charts;
  const {make, table, table_behind, section, chart} = Elements;
  const {percent, sum} = TimeSections;

  // In the drives' order; a ninth begins again. Ceilings are dashed lines of the same colour.
  const DRIVE_COLOURS = ['blue', 'orange', 'green', 'purple', 'sky', 'vermillion', 'yellow',
                         'neutral'];
  const bytes_text = (bytes) => (bytes >= 2 ** 30 ? `${format(bytes / 2 ** 30)} GiB` :
                                 `${format(bytes / 2 ** 20)} MiB`);

  function layers(run) {
    const shown = run.layers.filter((layer) => layer.calls !== 0);
    if (shown.length === 0)
      return section('Hits by layer', make('p', {}, run.unit === 'token' ?
          'No layer of this run called experts.' :
          'Layers are counted for tokens, not for prompts.'));
    const rate = (layer) => 1 - layer.misses / layer.calls;
    const rows = shown.map((layer) => [layer.layer, 100 * rate(layer)]);
    const last = shown[shown.length - 1];
    const calls = shown.reduce((n, layer) => n + layer.calls, 0);
    const misses = shown.reduce((n, layer) => n + layer.misses, 0);
    return section('Hits by layer',
        make('p', {}, `${percent(1 - misses / calls)} of ${calls.toLocaleString('en')} calls of ` +
            `experts were answered from RAM, in the last ${last.visits.toLocaleString('en')} ` +
            'tokens that the record of layers holds. An expert that was guessed and read ahead ' +
            'counts as read.'),
        chart('Share of calls answered from RAM, by layer', {
          series: [{colour: 'blue'}], rows, y_top: 102, xlabel: 'layer', ylabel: '%',
          plotter: Charts.stacked_bars, dateWindow: [rows[0][0] - 0.5, last.layer + 0.5],
          says: (row) => `layer ${shown[row].layer}: ${percent(rate(shown[row]))} of ` +
              `${shown[row].calls.toLocaleString('en')} calls from RAM`,
        }, {low: true}),
        table_behind('hits by layer', [
          {name: 'layer', number: true, of: (layer) => String(layer.layer)},
          {name: 'calls', number: true, of: (layer) => layer.calls.toLocaleString('en')},
          {name: 'misses', number: true, of: (layer) => layer.misses.toLocaleString('en')},
          {name: 'from RAM', number: true, of: (layer) => percent(rate(layer))},
          {name: 'ms a visit', number: true,
           of: (layer) => format(layer.wall_ns / 1e6 / Math.max(layer.visits, 1))},
          {name: 'of it waiting', number: true,
           of: (layer) => percent(layer.wait_ns / Math.max(layer.wall_ns, 1))},
        ], () => shown));
  }

  // Lines by token: what came in per second of the token's time, and under what it stayed.
  function lines(run, zoom, label, entries) {
    const rows = run.tokens.wall_ns.map((ns, row) => [row, ...entries.flatMap((entry) =>
        [entry.bytes[row] / Math.max(ns, 1), ...(entry.ceiling > 0 ? [entry.ceiling] : [])])]);
    const series = entries.flatMap((entry) => [
      {name: entry.name, colour: entry.colour, line: true},
      ...(entry.ceiling > 0 ? [{name: `${entry.ceiling_name} ${format(entry.ceiling)} GB/s`,
                                colour: entry.colour, line: true, dashed: true, flat: true}] : []),
    ]);
    return chart(label, {
      series, rows, zoom, xlabel: run.unit, ylabel: 'GB/s', stepPlot: true,
      dateWindow: [-0.5, rows.length - 0.5], xRangePad: 12,
      says: (row) => `${run.unit} ${row}: ` + entries.map((entry) =>
          `${entry.name} ${format(entry.bytes[row] / Math.max(run.tokens.wall_ns[row], 1))} GB/s`)
          .join(', '),
    }, {low: true});
  }

  // What the reads were doing while nothing could be computed without them.
  function waits(run) {
    const slept = run.waits.filter((wait) => wait.queued_ns + wait.service_ns + wait.woken_ns > 0);
    if (slept.length === 0) return null;
    const share = (ns) => percent(ns / Math.max(sum(run.tokens.wall_ns), 1));
    return table('Share of the time asleep until a read came, by what that read did meanwhile', [
      {name: 'drive', of: (wait) => wait.drive},
      {name: 'stood in the queue', number: true, of: (wait) => share(wait.queued_ns)},
      {name: 'was with the drive', number: true, of: (wait) => share(wait.service_ns)},
      {name: 'had come, not yet awake', number: true, of: (wait) => share(wait.woken_ns)},
    ], slept);
  }

  function bandwidth(run, zoom) {
    const {ceilings} = run;
    const drives = run.drives.map((name, drive) => {
      const {gb_s, expected_gb_s} = ceilings.drives[drive] || {gb_s: 0, expected_gb_s: 0};
      return {name, colour: DRIVE_COLOURS[drive % DRIVE_COLOURS.length],
              bytes: run.tokens.drive_bytes[drive], ceiling: Math.max(gb_s, expected_gb_s),
              ceiling_name: `${name} ${expected_gb_s > gb_s ? 'expected' : 'while busy, mean'}:`};
    }).filter((drive) => drive.bytes.some((bytes) => bytes !== 0));
    const memory = ceilings.ram_fits_cache ? 'cache' : 'RAM';
    const weights = {name: `weights from ${memory}`, colour: 'green',
                     ceiling_name: `${memory} as it can be read:`,
                     ceiling: ceilings.ram_read_gb_s,
                     bytes: run.tokens.wall_ns.map(() => ceilings.weight_bytes_per_token)};
    // Bytes per nanosecond are GB per second.
    const mean = (bytes) => sum(bytes) / Math.max(sum(run.tokens.wall_ns), 1);
    const rows = [...(run.unit === 'token' ? [weights] : []), ...drives];
    return section('Bandwidth against its ceilings',
        make('p', {class: 'quiet'}, 'Ceilings are of this run: memory as all threads read the ' +
            'model’s own weights from it, a drive by the bytes it gave while it had a read to ' +
            'answer (a mean: a token can do better), or by the probe of the start if that found ' +
            'more.' + (ceilings.ram_fits_cache ? ' What was read fits the CPU’s caches: that ' +
            'figure is no ceiling of RAM.' : '')),
        drives.length === 0 ? make('p', {}, 'No expert was read from a drive.') :
            lines(run, zoom, `Read from drives, by ${run.unit}`, drives),
        run.unit === 'token' ?
            lines(run, zoom, 'Weights that a token touches, over its time', [weights]) : null,
        table('Means of the run', [
          {name: '', of: (row) => row.name},
          {name: 'GB/s', number: true, of: (row) => format(mean(row.bytes))},
          {name: 'ceiling GB/s', number: true, of: (row) => format(row.ceiling || NaN)},
          {name: 'share', number: true,
           of: (row) => (row.ceiling > 0 ? percent(mean(row.bytes) / row.ceiling) : '–')},
        ], rows),
        waits(run),
        table_behind(`bandwidth of every ${run.unit}`, [
          {name: run.unit, number: true, of: (row) => String(row)},
          ...rows.map((entry) => ({name: `${entry.name} GB/s`, number: true,
            of: (row) => format(entry.bytes[row] / Math.max(run.tokens.wall_ns[row], 1))})),
        ], () => run.tokens.wall_ns.map((_, row) => row)));
  }

  function sizes(run) {
    const curve = run.cache_curve;
    if (!curve || curve.points.length === 0)
      return section('Other cache sizes', make('p', {}, 'No routing of tokens was kept.'));
    const {points} = curve;
    const rows = points.map((point) => [point.kept, 100 * point.policy, 100 * point.optimum]);
    const text = (point) => `${point.kept} of ${curve.experts} experts of every layer ` +
        `(${bytes_text(point.bytes)}): ${percent(point.policy)} with ${curve.policy}, ` +
        `${percent(point.optimum)} at best`;
    return section('Other cache sizes',
        make('p', {}, `What caches of other sizes would have hit on the last ` +
            `${curve.tokens.toLocaleString('en')} tokens’ calls, the first ` +
            `${curve.skipped.toLocaleString('en')} of which fill the cache and don’t count. No ` +
            'policy hits more than the optimum, which knows the future.'),
        chart('Share of calls that hit, by experts kept of every layer', {
          series: [{name: `policy ${curve.policy}`, colour: 'blue', line: true},
                   {name: 'optimum', colour: 'orange', line: true, dashed: true}],
          rows, y_top: 102, xlabel: 'experts kept of every layer', ylabel: '%', drawPoints: true,
          pointSize: 3, xRangePad: 12, says: (row) => text(points[row]),
          underlayCallback: Charts.vertical_marks([{x: curve.run_kept,
            text: `this run: ${format(curve.run_kept)} kept, ${percent(curve.at_run_size)}`}],
            {low: true}),
        }, {low: true}),
        table('Hits by cache size', [
          {name: 'experts kept of every layer', number: true, of: (point) => String(point.kept)},
          {name: 'bytes', number: true, of: (point) => bytes_text(point.bytes)},
          {name: `hits with ${curve.policy}`, number: true, of: (point) => percent(point.policy)},
          {name: 'at best', number: true, of: (point) => percent(point.optimum)},
        ], points));
  }

  return {layers, bandwidth, sizes};
})();
