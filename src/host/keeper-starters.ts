import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { KeeperProcess } from '../control/keeper-process.ts';
import type { WantedKeeper } from '../control/keeper-unit.ts';

/** Starts a keeper; resolves when its VM runs. @throws what kept it from starting */
export type StartKeeper = (keeper: WantedKeeper) => Promise<void>;

/** As a process of its own that outlives this one. Specifications lie in `specDirectory` while keepers read them. */
export function startDirectly(specDirectory: string): StartKeeper {
  return async ({ name, spec, source, wishes }) => {
    const path = join(specDirectory, `${name}.yaml`);
    // A file and not a pipe: were this process killed, half a specification might be read as a whole one.
    writeFileSync(path, spec, { mode: 0o600, flush: true });
    const keeper = new KeeperProcess(path, { vm: name, source, wishes });
    try {
      await keeper.started();
    } finally {
      keeper.release();
      rmSync(path, { force: true });
    }
  };
}
