// The examples of fhir-kit-client's own documentation, one after the other; prints what each gave, as one JSON line.
// Usage: run BASE [TOKEN]
import Client from 'fhir-kit-client';

const [baseUrl, bearerToken] = process.argv.slice(2);
const client = new Client({ baseUrl, ...(bearerToken ? { bearerToken } : {}) });
const results = [];
const step = async (name, call) => {
  try {
    results.push([name, await call()]);
    return results.at(-1)[1];
  } catch (error) {
    results.push([name, { status: error.response?.status ?? String(error) }]);
    return undefined;
  }
};

const patient = { resourceType: 'Patient', active: true, name: [{ use: 'official', family: 'Coleman', given: ['Lisa', 'P.'] }] };
await step('read', () => client.read({ resourceType: 'Patient', id: 'pat-1' }));
await step('vread', () => client.vread({ resourceType: 'Patient', id: 'pat-1', version: '1' }));
const made = await step('create', () => client.create({ resourceType: 'Patient', body: patient }));
await step('update', () => client.update({ resourceType: 'Patient', id: made.id, body: { ...made, birthDate: '1948-04-14' } }));
await step('conditional update', () =>
  client.update({ resourceType: 'Patient', searchParams: { family: 'Coleman' }, body: { ...patient, gender: 'female' } }));
await step('patch', () => client.patch({ resourceType: 'Patient', id: made.id, JSONPatch: [{ op: 'replace', path: '/gender', value: 'male' }] }));
await step('resource history', () => client.resourceHistory({ resourceType: 'Patient', id: made.id }));
await step('type history', () => client.typeHistory({ resourceType: 'Patient' }));
await step('system history', () => client.systemHistory());
const first = await step('search', () => client.resourceSearch({ resourceType: 'Patient', searchParams: { _count: 3, gender: 'female' } }));
await step('post search', () =>
  client.resourceSearch({ resourceType: 'Patient', searchParams: { _count: 20, name: 'Coleman' }, options: { postSearch: true } }));
const second = await step('next page', () => client.nextPage({ bundle: first }));
await step('previous page', async () => (await client.prevPage({ bundle: second }))?.entry?.length ?? 'none');
await step('include', () => client.resourceSearch({ resourceType: 'Observation', searchParams: { _include: 'Observation:subject', patient: 'Patient/pat-1' } }));
await step('everything', () => client.operation({ name: 'everything', resourceType: 'Patient', id: 'pat-1', method: 'get' }));
await step('resolve', () => client.resolve({ reference: 'Patient/pat-2' }));
const entries = [
  { request: { method: 'GET', url: 'Patient/pat-2' } },
  { request: { method: 'POST', url: 'Patient' }, resource: patient },
];
await step('batch', () => client.batch({ body: { resourceType: 'Bundle', type: 'batch', entry: entries } }));
await step('transaction', () => client.transaction({ body: { resourceType: 'Bundle', type: 'transaction', entry: entries } }));
await step('delete', () => client.delete({ resourceType: 'Patient', id: made.id }));
await step('read what is deleted', () => client.read({ resourceType: 'Patient', id: made.id }));
console.log(JSON.stringify(results));
