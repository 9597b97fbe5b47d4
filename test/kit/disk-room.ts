import { mkdirSync } from 'node:fs';
import { BadSector } from './bad-sector.ts';
import { SmallTmpfs } from './small-tmpfs.ts';

export interface DiskRoomOptions {
  /** Of its file system; undefined: as much as there is. */
  readonly roomBytes: number | undefined;
  /** Of the image that is made there, one that cannot be written; undefined: none. */
  readonly badSector: number | undefined;
  readonly image: { readonly path: string; readonly sizeBytes: number };
}

/** Makes the folder for the disks of a host. What it needs for that ends with `owned`. */
export async function makeDiskRoom(
  path: string,
  { roomBytes, badSector, image, owned }: DiskRoomOptions & { readonly owned: AsyncDisposableStack },
): Promise<SmallTmpfs | undefined> {
  mkdirSync(path);
  const room = roomBytes === undefined ? undefined : owned.use(new SmallTmpfs(roomBytes, path));
  if (badSector !== undefined) owned.use(await BadSector.open(image.path, { ...image, sector: badSector }));
  return room;
}
