// A click on a column's name sorts the table by it, a second one the other way round; empty cells come last.
for (const [column, head] of document.querySelectorAll('thead th').entries()) head.onclick = () => {
  const down = head.dataset.down !== '1', body = document.querySelector('tbody')
  for (const other of document.querySelectorAll('thead th')) delete other.dataset.down
  head.dataset.down = down ? '1' : '0'
  const value = row => row.cells[column].dataset.v
  const compare = (a, b) => a === b ? 0 : a === '' ? 1 : b === '' ? -1 :
    (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (down ? 1 : -1)
  for (const row of [...body.rows].sort((a, b) => compare(value(a), value(b)))) body.append(row)
}
