import { environmentOf, hostConfigPlace, loadHostConfig } from '../config/host-config.ts';

/**
 * Has this process look where the host's configuration says that things are, unless its environment says otherwise.
 * @throws {ConfigError} CONFIG_NOT_FOUND, CONFIG_INVALID
 */
export function applyHostConfig(): void {
  Object.assign(process.env, environmentOf(loadHostConfig(hostConfigPlace(undefined)), process.env));
}
