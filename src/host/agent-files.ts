import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDirectory } from '../base/make-directory.ts';

/** What agents of VMs have learnt, a file for each VM. A name of a VM is the name of a file: a-z, 0-9 and hyphens. */
export class AgentFiles {
  readonly #directory: string;
  /** By VM: the last write that was asked for. Two at once would be in each other's file. */
  readonly #writing = new Map<string, Promise<void>>();
  /** By VM: what is on its way to the disk. */
  readonly #unwritten = new Map<string, Uint8Array>();

  constructor(directory: string) {
    this.#directory = directory;
    makeDirectory(directory, { mode: 0o700 });
  }

  /** Without those of VMs that are not known any more: another one may come to have the name. */
  static open(directory: string, { isKnown }: { readonly isKnown: (vm: string) => boolean }): AgentFiles {
    const files = new AgentFiles(directory);
    for (const name of readdirSync(directory))
      if (!isKnown(name.slice(0, name.indexOf('.')))) rmSync(join(directory, name), { force: true });
    return files;
  }

  /** Whether limits that agents decided may hold for a VM. */
  isLimited(vm: string): boolean {
    return existsSync(this.#limitedPath(vm));
  }

  /** To be written down before the first of them is set, and when the last one is gone. */
  noteLimited(vm: string, isLimited: boolean): void {
    if (isLimited) writeFileSync(this.#limitedPath(vm), '', { mode: 0o600, flush: true });
    else rmSync(this.#limitedPath(vm), { force: true });
  }

  /** Undefined where there is none, or none that can be read: an agent can always begin anew. */
  load(vm: string): Uint8Array | undefined {
    const unwritten = this.#unwritten.get(vm);
    if (unwritten !== undefined) return unwritten;
    try {
      return readFileSync(this.#path(vm));
    } catch {
      return undefined;
    }
  }

  /** All of it or what was there before, whatever happens to this process or this machine. */
  save(vm: string, state: Uint8Array): Promise<void> {
    this.#unwritten.set(vm, state);
    const before = this.#writing.get(vm) ?? Promise.resolve();
    const writing = before
      .catch(() => {})
      .then(() => this.#write(vm, state))
      .finally(() => {
        if (this.#unwritten.get(vm) === state) this.#unwritten.delete(vm);
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
    for (const path of [this.#path(vm), `${this.#path(vm)}.next`, this.#limitedPath(vm)])
      rmSync(path, { force: true });
  }

  #limitedPath(vm: string): string {
    return join(this.#directory, `${vm}.limited`);
  }

  #path(vm: string): string {
    return join(this.#directory, `${vm}.agent`);
  }
}
