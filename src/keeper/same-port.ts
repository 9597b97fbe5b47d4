export interface OpenPort extends Disposable {
  readonly port: number;
}

export interface SamePortOptions {
  /** 0: any that is free at all of the addresses. */
  readonly port: number;
  readonly open: (at: { readonly host: string; readonly port: number }) => Promise<OpenPort>;
}

const TRIES_MAX = 20;

/** Listens at all of these addresses: whoever is told of the port knows the addresses already. @throws what `open` throws */
export async function openSamePort(
  hosts: readonly string[],
  { port: wanted, open }: SamePortOptions,
): Promise<OpenPort> {
  for (let tries = 1; ; tries += 1) {
    using opening = new DisposableStack();
    let port = wanted;
    try {
      for (const host of hosts) ({ port } = opening.use(await open({ host, port })));
    } catch (cause) {
      // The port that was free at one address may be taken at the next one.
      if (port !== wanted && tries < TRIES_MAX) continue;
      throw cause;
    }
    const opened = opening.move();
    return { port, [Symbol.dispose]: () => opened.dispose() };
  }
}
