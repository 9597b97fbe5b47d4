/** Where methods write their quantiles while they are put together. One for all series of a process is enough. */
export class MethodScratch {
  #rows: Float64Array[] = [];
  #values = new Float64Array(0);
  #weights = new Float64Array(0);

  get rows(): readonly Float64Array[] {
    return this.#rows;
  }

  get values(): Float64Array {
    return this.#values;
  }

  get weights(): Float64Array {
    return this.#weights;
  }

  reserve({ methods, cells }: { readonly methods: number; readonly cells: number }): void {
    if (methods > this.#values.length) {
      this.#values = new Float64Array(methods);
      this.#weights = new Float64Array(methods);
    }
    if (methods <= this.#rows.length && cells <= (this.#rows[0]?.length ?? 0)) return;
    const length = Math.max(cells, this.#rows[0]?.length ?? 0);
    this.#rows = Array.from({ length: Math.max(methods, this.#rows.length) }, () => new Float64Array(length));
  }
}
