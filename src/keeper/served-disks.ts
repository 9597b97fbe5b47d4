import { lchownSync, rmSync } from 'node:fs';
import { NbdServer, type NbdServerOptions } from '../block/nbd-server.ts';

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

/** Serves these at a socket that nobody else may open. @throws Error of Node */
export async function serveExports(
  exports: NbdServerOptions['exports'],
  { socketPath, owner }: Pick<ServeOptions, 'socketPath' | 'owner'>,
): Promise<NbdServer> {
  rmSync(socketPath, { force: true });
  const server = await NbdServer.listen({ socketPath, exports });
  if (owner !== undefined) lchownSync(socketPath, owner.uid, owner.gid);
  return server;
}
