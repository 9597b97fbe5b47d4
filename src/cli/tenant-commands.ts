import { readFileSync } from 'node:fs';
import { stringify } from 'yaml';
import { setPolicySchema, type Tenant } from '../api/access-resources.ts';
import { messageOf } from '../base/errors.ts';
import { formatBytes } from '../base/units.ts';
import { ConfigError } from '../config/config-error.ts';
import { parseYamlText } from '../config/yaml-text.ts';
import { CliError } from './cli-error.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { type Output, table } from './output.ts';

export async function createTenant(name: string, out: Output): Promise<number> {
  const tenant = await hostClient().call('createTenant', { body: { name } });
  out.result(tenant, () => `${name} is a tenant; \`understudy policy show ${name}\` shows what it may`);
  return EXIT_CODES.ok.code;
}

async function allTenants(): Promise<Tenant[]> {
  const client = hostClient();
  const tenants: Tenant[] = [];
  for (let after: string | undefined; ; ) {
    const page = await client.call('listTenants', { query: { ...(after !== undefined && { after }) } });
    tenants.push(...page.tenants);
    if (page.next === null) return tenants;
    after = page.next;
  }
}

/** As the host knows it. @throws CliError CLI_TENANT_UNKNOWN; ApiError */
export async function tenantIdOf(name: string): Promise<string> {
  const found = (await allTenants()).find((tenant) => tenant.name === name);
  if (found !== undefined) return found.id;
  throw new CliError('CLI_TENANT_UNKNOWN', `the host knows no tenant ${name}`, {
    hint: '`understudy tenant ls` lists them; give --tenant-id where the CA is not on a machine that can ask the host.',
  });
}

export async function listTenants(out: Output): Promise<number> {
  const tenants = await allTenants();
  out.result({ tenants }, () => {
    if (tenants.length === 0) return 'there are no tenants';
    const rows = tenants.map(({ name, id, vms, memoryBytes, vcpus, diskBytes, createdAt }) => [
      ...[name, String(vms), formatBytes(memoryBytes), String(vcpus), formatBytes(diskBytes), createdAt, id],
    ]);
    return table([['NAME', 'VMS', 'MEMORY', 'VCPUS', 'DISKS', 'CREATED', 'ID'], ...rows]);
  });
  return EXIT_CODES.ok.code;
}

export async function deleteTenant(name: string, out: Output): Promise<number> {
  await hostClient().call('deleteTenant', { params: { name } });
  out.result({ name, deleted: true }, () => `${name} is no tenant any more`);
  return EXIT_CODES.ok.code;
}

/** As `policy set` takes it. */
export async function showPolicy(name: string, out: Output): Promise<number> {
  const policy = await hostClient().call('getPolicy', { params: { name } });
  const { defaults, limits } = policy;
  out.result(policy, () => stringify({ defaults, limits }).trimEnd());
  return EXIT_CODES.ok.code;
}

/** @throws ConfigError CONFIG_NOT_FOUND, CONFIG_INVALID; ApiError HOST_POLICY_CHANGED when somebody else was faster */
export async function setPolicy(name: string, { path }: { path: string }, out: Output): Promise<number> {
  const { value: body } = parseYamlText(readText(path), setPolicySchema, { source: path, whole: 'policy' });
  const client = hostClient();
  const params = { name };
  const { version } = await client.call('getPolicy', { params });
  const headers = { 'if-match': `"${version}"` };
  const policy = await client.call('setPolicy', { params, headers, body });
  out.result(policy, () => `the policy ${name} is at version ${policy.version}`);
  return EXIT_CODES.ok.code;
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (cause) {
    throw new ConfigError('CONFIG_NOT_FOUND', `cannot read the policy ${path}: ${messageOf(cause)}`, {
      hint: 'Give the path of a YAML file; `understudy policy show default` prints one.',
      facts: { path },
      cause,
    });
  }
}
