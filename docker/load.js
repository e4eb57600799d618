// The load of docker compose --profile load: one id a request, RATE of them a second, whatever the answers take.
import http from 'k6/http';

const rate = Number(__ENV.RATE);

export const options = {
  // It tells apart whom it talks to by this tag; by the URL every id would be one of its own.
  discardResponseBodies: true,
  scenarios: {
    ids: {
      executor: 'constant-arrival-rate',
      rate,
      timeUnit: '1s',
      // Then it begins again, because Compose restarts it.
      duration: '24h',
      preAllocatedVUs: 50,
      maxVUs: 500,
    },
  },
};

// Ids are drawn from as many as a minute has requests. So of the requests of a window some 63 % are
// different (1 - 1/e), the rest repeats.
export default function () {
  const id = Math.floor(Math.random() * rate * 60);
  const answer = http.get(`${__ENV.TARGET}/api/verve/accept?id=${id}`, { tags: { name: 'accept' } });
  if (answer.status !== 200) {
    console.error(`${answer.status} ${answer.headers['Failure-Reason'] || answer.error}`);
  }
}
