/**
 * Who may import whom. This table is the only place where the directions stand; ARCHITECTURE.md explains them,
 * and test/house/import-directions.test.ts plants violations to prove that they are found.
 */
const { Visitor } = require('@swc/core/Visitor.js');

// The walker through swc's syntax tree gives up at `using`. It is a declaration like `const`, so walk it as one.
const { visitStatement } = Visitor.prototype;
Visitor.prototype.visitStatement = function (statement) {
  if (statement.type !== 'UsingDeclaration') return visitStatement.call(this, statement);
  statement.decls = this.visitVariableDeclarators(statement.decls);
  return statement;
};

/** Imports go up this list only: from a later room to an earlier one. */
const ROOMS = [
  'base',
  'linux',
  'epoch',
  'config',
  'guest',
  'qemu',
  'memory',
  'block',
  'net',
  'wire',
  'telemetry',
  'forecast',
  'replication',
  'snapshot',
  'lease',
  'shadow',
  'offload',
  'allocation',
  'sculpting',
  'pki',
  'api',
  'control',
  'site',
  'keeper',
  'host',
  'demo',
  'cli',
];
/** Rooms that do not know each other: they meet in the rooms that compose them. */
const STRANGERS = ['guest', 'qemu', 'memory', 'block', 'net', 'wire', 'telemetry', 'forecast'];
/** Rooms that put the others together. Nobody imports them, not even each other: they are started. */
const COMPOSERS = ['keeper', 'host', 'cli'];

/** guest/ is a room too, though it stands beside src/. */
const within = (rooms) => `^(?:src/)?(?:${rooms.join('|')})/`;
const anyRoom = '^(?:src/|guest/)';
const testFile = '\\.test\\.ts$';

const directions = ROOMS.slice(0, -1).map((room, index) => ({
  name: `${room}-imports-no-later-room`,
  comment: `${room}/ may import itself and the rooms before it: ${ROOMS.slice(0, index).join(', ') || 'none'}`,
  severity: 'error',
  from: { path: within([room]) },
  to: { path: within(ROOMS.slice(index + 1)) },
}));

const strangers = STRANGERS.map((room) => ({
  name: `${room}-knows-no-stranger`,
  comment: `${STRANGERS.join(', ')} do not import each other: they meet in replication/ and keeper/`,
  severity: 'error',
  from: { path: within([room]) },
  to: { path: within(STRANGERS.filter((other) => other !== room)) },
}));

const composers = COMPOSERS.map((room) => ({
  name: `nobody-imports-${room}`,
  comment: `${room}/ is started, not imported: what others need of it belongs into an earlier room`,
  severity: 'error',
  from: { path: anyRoom, pathNot: within([room]) },
  to: { path: within([room]) },
}));

const everywhere = [
  {
    name: 'no-circle',
    comment: 'two files that need each other are one concept, or hide a third',
    severity: 'error',
    from: {},
    to: { circular: true },
  },
  {
    name: 'no-unknown-room',
    comment: 'a new folder in src/ needs its place in the list of rooms',
    severity: 'error',
    from: {},
    to: { path: '^src/', pathNot: within(ROOMS) },
  },
  {
    name: 'unknown-room-imports-nothing',
    comment: 'a new folder in src/ needs its place in the list of rooms',
    severity: 'error',
    from: { path: '^src/', pathNot: within(ROOMS) },
    to: {},
  },
  {
    name: 'product-needs-no-tests',
    comment: 'what is shipped imports neither tests nor benchmarks',
    severity: 'error',
    from: { path: anyRoom, pathNot: testFile },
    to: { path: [testFile, '^(?:test|bench)/'] },
  },
  {
    name: 'product-needs-no-development-package',
    comment: 'what is shipped runs on "dependencies" alone',
    severity: 'error',
    from: { path: anyRoom, pathNot: testFile },
    to: { dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown'], dependencyTypesNot: ['type-only'] },
  },
  {
    name: 'everything-resolves',
    comment: 'an import that is not found would hide all that lies behind it',
    severity: 'error',
    from: {},
    to: { couldNotResolve: true },
  },
];

module.exports = {
  forbidden: [...directions, ...strangers, ...composers, ...everywhere],
  options: {
    // With TypeScript 7 the other parsers find no import at all, and say nothing.
    parser: 'swc',
    tsPreCompilationDeps: true,
    doNotFollow: { path: 'node_modules' },
    enhancedResolveOptions: {
      extensions: ['.ts', '.js', '.json'],
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'default', 'types'],
    },
  },
};
