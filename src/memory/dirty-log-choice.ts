import { LinuxError } from '../linux/linux-error.ts';
import { CompareLog } from './compare-log.ts';
import type { DirtyLog } from './dirty-log.ts';
import { logUnavailable, type WatchedMemory } from './mapped-memory.ts';
import { MemoryError } from './memory-error.ts';
import { PagemapScanLog } from './pagemap-scan-log.ts';
import { SoftDirtyLog } from './soft-dirty-log.ts';

type Method = DirtyLog['method'];

interface DirtyLogChoice {
  readonly log: DirtyLog;
  /** Better methods that do not work here, and why. */
  readonly passedOver: readonly MemoryError[];
}

/** Best first. `compare` works everywhere. */
const METHODS: readonly Method[] = ['pagemap-scan', 'soft-dirty', 'compare'];

const OPENERS: Readonly<Record<Method, (watched: WatchedMemory) => DirtyLog>> = {
  'pagemap-scan': (watched) => new PagemapScanLog(watched),
  'soft-dirty': (watched) => new SoftDirtyLog(watched),
  compare: (watched) => new CompareLog(watched),
};

/**
 * Opens a dirty log of the given method, or the best that works, proven by a first collection. It reports what
 * changes from now on: whoever needs the memory as it is now copies it while the VM still stands.
 * @throws MemoryError MEMORY_LOG_UNAVAILABLE when the method asked for does not work here.
 */
export function openDirtyLog(options: WatchedMemory & { method: Method | 'auto' }): DirtyLogChoice {
  const { method, ...watched } = options;
  if (method !== 'auto') return { log: openProven(method, watched), passedOver: [] };
  const passedOver: MemoryError[] = [];
  for (const candidate of METHODS) {
    try {
      return { log: openProven(candidate, watched), passedOver };
    } catch (thrown) {
      if (!(thrown instanceof MemoryError && thrown.code === 'MEMORY_LOG_UNAVAILABLE')) throw thrown;
      passedOver.push(thrown);
    }
  }
  throw logUnavailable('compare', 'no method is left', passedOver.at(-1));
}

function openProven(method: Method, watched: WatchedMemory): DirtyLog {
  let log: DirtyLog | undefined;
  try {
    log = OPENERS[method](watched);
    log.collect();
    return log;
  } catch (thrown) {
    log?.[Symbol.dispose]();
    if (thrown instanceof LinuxError) throw logUnavailable(method, thrown.message, thrown);
    throw thrown;
  }
}
