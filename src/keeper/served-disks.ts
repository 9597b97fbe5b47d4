export interface ServeOptions {
  readonly instance: number;
  readonly socketPath: string;
  readonly owner: { readonly uid: number; readonly gid: number } | undefined;
}

/** Disks that a QEMU gets from its keeper. */
export interface ServedDisks {
  /** In the order of the specification. */
  readonly names: readonly string[];
  /** Serves them to one QEMU, until what this returns is disposed of. @throws Error of Node */
  serve(options: ServeOptions): Promise<AsyncDisposable>;
}
