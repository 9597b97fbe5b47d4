import { readFileSync, rmSync } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDirectory } from '../base/make-directory.ts';

/** What agents of VMs have learnt, a file for each VM. A name of a VM is the name of a file: a-z, 0-9 and hyphens. */
export class AgentFiles {
  readonly #directory: string;
  /** By VM: the last write that was asked for. Two at once would be in each other's file. */
  readonly #writing = new Map<string, Promise<void>>();

  constructor(directory: string) {
    this.#directory = directory;
    makeDirectory(directory, { mode: 0o700 });
  }

  /** Undefined where there is none, or none that can be read: an agent can always begin anew. */
  load(vm: string): Uint8Array | undefined {
    try {
      return readFileSync(this.#path(vm));
    } catch {
      return undefined;
    }
  }

  /** All of it or what was there before, whatever happens to this process or this machine. */
  save(vm: string, state: Uint8Array): Promise<void> {
    const before = this.#writing.get(vm) ?? Promise.resolve();
    const writing = before
      .catch(() => {})
      .then(() => this.#write(vm, state))
      .finally(() => {
        if (this.#writing.get(vm) === writing) this.#writing.delete(vm);
      });
    this.#writing.set(vm, writing);
    return writing;
  }

  async #write(vm: string, state: Uint8Array): Promise<void> {
    const path = this.#path(vm);
    const next = `${path}.next`;
    try {
      await using file = await open(next, 'w', 0o600);
      await file.writeFile(state);
      await file.datasync();
    } catch (thrown) {
      await rm(next, { force: true });
      throw thrown;
    }
    await rename(next, path);
  }

  /** What is being written is written to its end first. */
  async forget(vm: string): Promise<void> {
    await this.#writing.get(vm)?.catch(() => {});
    for (const path of [this.#path(vm), `${this.#path(vm)}.next`]) rmSync(path, { force: true });
  }

  #path(vm: string): string {
    return join(this.#directory, `${vm}.agent`);
  }
}
