import { execFile } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import { delimiter, resolve } from 'node:path';
import { promisify } from 'node:util';
import { QemuError } from './qemu-error.ts';
import { qemuMissing } from './qemu-process.ts';

/** The first with `-netdev stream`. */
const VERSION_MIN = [7, 2] as const;
const ANSWER_DEADLINE_MS = 10_000;

export interface QemuBinary {
  readonly path: string;
  /** `7.2.22` */
  readonly version: string;
}

/** Finds QEMU and its version. Asks each binary once, and again when the file has changed (an upgrade). */
export class QemuFinder {
  readonly #searchPath: string;
  readonly #found = new Map<string, Promise<QemuBinary>>();

  constructor({ searchPath = process.env.PATH ?? '' } = {}) {
    this.#searchPath = searchPath;
  }

  /**
   * @param binary a path, or a name to be found in PATH
   * @throws {QemuError} QEMU_MISSING, QEMU_TOO_OLD
   */
  async find(binary: string): Promise<QemuBinary> {
    const path = this.#locate(binary);
    const key = `${path} ${statSync(path).mtimeMs}`;
    const known = this.#found.get(key);
    if (known !== undefined) return known;
    const asked = askVersion(path);
    this.#found.set(key, asked);
    return asked;
  }

  #locate(binary: string): string {
    const paths = binary.includes('/')
      ? [resolve(binary)]
      : this.#searchPath.split(delimiter).map((folder) => resolve(folder, binary));
    const path = paths.find(isProgram);
    if (path === undefined) throw qemuMissing(binary);
    return path;
  }
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

async function askVersion(path: string): Promise<QemuBinary> {
  const { stdout } = await promisify(execFile)(path, ['--version'], { timeout: ANSWER_DEADLINE_MS }).catch(
    (cause) => {
      throw qemuMissing(path, cause);
    },
  );
  const match = /^QEMU emulator version ((\d+)\.(\d+)(?:\.\d+)?)/.exec(stdout);
  if (match === null) throw qemuMissing(path, new Error(`it says: ${stdout.slice(0, 80)}`));
  const [version = '', major, minor] = match.slice(1);
  const older =
    Number(major) < VERSION_MIN[0] || (Number(major) === VERSION_MIN[0] && Number(minor) < VERSION_MIN[1]);
  if (!older) return { path, version };
  throw new QemuError('QEMU_TOO_OLD', `${path} is QEMU ${version}; ${VERSION_MIN.join('.')} is needed`, {
    hint: 'Debian 12 has a QEMU that is new enough.',
    facts: { path, version },
  });
}
