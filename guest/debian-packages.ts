import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { makeDirectory } from '../src/base/make-directory.ts';
import { GuestError, unexpectedPackage } from './guest-error.ts';
import { runTool } from './host-tool.ts';

const packageSchema = z.object({ version: z.string(), file: z.string(), sha256: z.string() });
const indexSchema = z.record(z.string(), packageSchema);

export interface DebianPackage {
  readonly name: string;
  readonly version: string;
  /** Absolute path of the .deb file. */
  readonly path: string;
  readonly sha256: string;
}

interface ArchiveOptions {
  readonly onProgress: (step: string) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Debian packages in a folder of the cache: fetched with apt once, then used from there, also offline.
 * Nothing is installed on this machine. One process at a time: the builder holds a lock.
 */
export class DebianPackages implements AsyncDisposable {
  readonly #directory: string;
  readonly #index: Map<string, z.infer<typeof packageSchema>>;
  readonly #onProgress: (step: string) => void;
  readonly #signal: AbortSignal | undefined;
  /** Whether apt uses package lists of ours instead of the machine's. */
  #ownLists = false;

  private constructor(
    directory: string,
    index: Record<string, z.infer<typeof packageSchema>>,
    { onProgress, signal }: ArchiveOptions,
  ) {
    this.#directory = directory;
    this.#index = new Map(Object.entries(index));
    this.#onProgress = onProgress;
    this.#signal = signal;
  }

  /** An index that is missing or damaged means that everything is fetched again. */
  static async open(directory: string, options: ArchiveOptions): Promise<DebianPackages> {
    makeDirectory(directory);
    const text = await readFile(join(directory, 'index.json'), 'utf8').catch(() => '{}');
    const index = indexSchema.safeParse(parseJson(text));
    return new DebianPackages(directory, index.data ?? {}, options);
  }

  /**
   * The packages of these names, from the folder where the checksum holds, else from apt.
   * @throws GuestError GUEST_DOWNLOAD_FAILED, GUEST_TOOL_MISSING
   */
  async obtain(names: readonly string[]): Promise<DebianPackage[]> {
    const missing: string[] = [];
    for (const name of names) if (!(await this.#holds(name))) missing.push(name);
    if (missing.length > 0) await this.#download(missing);
    return names.map((name) => this.#entry(name));
  }

  /** Names of the packages that this one depends on; of alternatives the first. */
  async dependencies(parent: DebianPackage): Promise<string[]> {
    const [preDepends = '', depends = ''] = await this.#fields(parent.path, ['Pre-Depends', 'Depends']);
    const names = `${preDepends},${depends}`
      .split(',')
      .map((dependency) => /^\s*([a-z0-9][a-z0-9.+-]*)/.exec(dependency)?.[1]);
    return names.filter((name) => name !== undefined);
  }

  async unpack(unpacked: DebianPackage, target: string): Promise<void> {
    await this.#dpkg(['--extract', unpacked.path, target]);
  }

  /** Package lists are large and soon out of date: they go, the packages stay. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ownLists) await rm(this.#listsFolder, { recursive: true, force: true });
  }

  get #listsFolder(): string {
    return join(this.#directory, 'lists');
  }

  #entry(name: string): DebianPackage {
    const known = this.#index.get(name);
    if (known === undefined) throw unexpectedPackage(`apt-get brought no package of the name ${name}`);
    return { name, version: known.version, path: join(this.#directory, known.file), sha256: known.sha256 };
  }

  async #holds(name: string): Promise<boolean> {
    const known = this.#index.get(name);
    if (known === undefined) return false;
    const bytes = await readFile(join(this.#directory, known.file)).catch(() => undefined);
    return bytes !== undefined && sha256(bytes) === known.sha256;
  }

  async #download(names: readonly string[]): Promise<void> {
    this.#onProgress(`Fetching ${names.join(', ')}`);
    const arrival = join(this.#directory, 'arriving');
    // A builder that was killed may have left one.
    await rm(arrival, { recursive: true, force: true });
    await mkdir(arrival);
    try {
      await this.#aptDownload(names, arrival);
      for (const file of await readdir(arrival)) await this.#adopt(arrival, file);
    } finally {
      await rm(arrival, { recursive: true, force: true });
    }
    await writeFile(
      join(this.#directory, 'index.json'),
      `${JSON.stringify(Object.fromEntries(this.#index), null, 2)}\n`,
    );
  }

  /** Package lists may be missing or too old: then they are fetched into the folder, which needs no root. */
  async #aptDownload(names: readonly string[], arrival: string): Promise<void> {
    let outcome = await this.#apt(['download', ...names], arrival);
    if (outcome.kind === 'failed' && !this.#ownLists) {
      this.#onProgress('Fetching package lists');
      makeDirectory(join(this.#listsFolder, 'partial'));
      this.#ownLists = true;
      // Its success says little (it only warns when hosts are out of reach): the download decides.
      await this.#apt(['update'], arrival);
      outcome = await this.#apt(['download', ...names], arrival);
    }
    if (outcome.kind === 'done') return;
    throw new GuestError(
      'GUEST_DOWNLOAD_FAILED',
      `apt-get cannot fetch ${names.join(', ')}: ${outcome.stderr}`,
      {
        hint: `Check that this machine reaches its Debian package source (\`apt-get update\`). If it does, delete ${this.#directory} and try again.`,
        facts: { packages: names },
      },
    );
  }

  #apt(args: readonly string[], arrival: string): ReturnType<typeof runTool> {
    const settings = [
      // As root, apt would change to its own user, who may not write to the cache.
      'APT::Sandbox::User=root',
      ...(this.#ownLists ? [`Dir::State::Lists=${this.#listsFolder}`, `Dir::Cache=${arrival}`] : []),
    ];
    return runTool('apt-get', ['-q', ...settings.flatMap((setting) => ['-o', setting]), ...args], {
      cwd: arrival,
      signal: this.#signal,
    });
  }

  async #adopt(arrival: string, file: string): Promise<void> {
    if (!file.endsWith('.deb')) return;
    const path = join(arrival, file);
    const [name, version] = await this.#fields(path, ['Package', 'Version']);
    if (name === undefined || version === undefined)
      throw unexpectedPackage(`${file} has no name or version`);
    const bytes = await readFile(path);
    await rename(path, join(this.#directory, file));
    const previous = this.#index.get(name)?.file;
    if (previous !== undefined && previous !== file)
      await rm(join(this.#directory, previous), { force: true });
    this.#index.set(name, { version, file, sha256: sha256(bytes) });
  }

  /** Control fields in the order asked for; undefined where the package has none of that name. */
  async #fields(path: string, names: readonly string[]): Promise<(string | undefined)[]> {
    const lines = (await this.#dpkg(['--field', path, ...names])).split('\n');
    return names.map((name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2));
  }

  async #dpkg(args: readonly string[]): Promise<string> {
    const outcome = await runTool('dpkg-deb', args, { signal: this.#signal });
    if (outcome.kind === 'failed')
      throw unexpectedPackage(`dpkg-deb cannot read a package: ${outcome.stderr}`);
    return outcome.stdout;
  }
}

export function sha256(bytes: Buffer | string): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
