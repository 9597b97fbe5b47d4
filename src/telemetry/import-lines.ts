/** The metric under which all samples are: what they are of is in labels, which may be any text. */
export const SAMPLE_METRIC = 'understudy_sample';

interface Line {
  readonly head: string;
  readonly values: number[];
  readonly timestamps: number[];
}

/** Samples as VictoriaMetrics' JSON lines, https://docs.victoriametrics.com/#how-to-import-data-in-json-line-format. */
export class ImportLines {
  readonly #lines = new Map<string, Map<string, Line>>();
  #count = 0;

  get count(): number {
    return this.#count;
  }

  add(labels: { readonly vm: string; readonly metric: string }, timeMs: number, value: number): void {
    const { vm, metric } = labels;
    let ofVm = this.#lines.get(vm);
    if (ofVm === undefined) {
      ofVm = new Map();
      this.#lines.set(vm, ofVm);
    }
    let line = ofVm.get(metric);
    if (line === undefined) {
      line = { head: JSON.stringify({ __name__: SAMPLE_METRIC, vm, metric }), values: [], timestamps: [] };
      ofVm.set(metric, line);
    }
    line.values.push(value);
    line.timestamps.push(timeMs);
    this.#count += 1;
  }

  text(): string {
    let text = '';
    for (const ofVm of this.#lines.values())
      for (const { head, values, timestamps } of ofVm.values())
        text += `{"metric":${head},"values":[${values.join(',')}],"timestamps":[${timestamps.join(',')}]}\n`;
    return text;
  }
}

/** As PromQL writes labels. Its strings are those of Go, which understand all that JSON writes. */
export function selector(labels: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  return `${SAMPLE_METRIC}{${pairs.join(',')}}`;
}
