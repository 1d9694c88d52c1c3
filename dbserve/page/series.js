// Which colour and line a task has, wherever it is drawn. Blocks have colours; what they are compared with is grey.

const COLOURS = 8;
const DASHES = { end_to_end: "", data_parallel: "8 3 2 3", shallow_long: "2 3", shallow: "5 3", trunk: "1 3" };

export function seriesClass({ kind, index }) {
  return kind === "block" ? `series-${index % COLOURS}` : `series-other series-${kind}`;
}

/** SVG's stroke-dasharray: baselines apart from blocks, and the second eight blocks from the first. */
export function seriesDash({ kind, index }) {
  if (kind === "block") return index < COLOURS ? "" : "6 2";
  return DASHES[kind] ?? "";
}
