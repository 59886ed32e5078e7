// Prompts to try.

export const EXAMPLES = {
  completion: {
    "Command page": "# zipinfo\n\n> List the contents of zip archives.\n\n- List all files in an archive:\n\n`zipinfo {{path/to/archive.zip}}`\n\n- ",
    "Python class": 'class Stack:\n    """A stack of values: the last one in is the first one out."""\n\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n',
    "Unit test": 'import unittest\n\nfrom shapes import Rectangle\n\n\nclass RectangleTest(unittest.TestCase):\n    def test_area(self):\n        self.assertEqual(Rectangle(2, 3).area(), 6)\n\n    def test_',
    "Word problem": "Question: A shop sells 14 cakes in the morning and twice as many in the afternoon. Each cake costs $3. How much money does the shop take?\nAnswer:",
  },
  chat: {
    "Word problem": "Lena reads 12 pages a day for 5 days and 20 pages on the sixth day. How many pages does she read?",
    "Shopping": "A pen costs $2 and a book costs 4 times as much. How much do 3 pens and 2 books cost together?",
  },
};

export function showExamples(element, mode, choose) {
  element.replaceChildren(...Object.entries(EXAMPLES[mode]).map(([name, text]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "chip";
    button.textContent = name;
    button.addEventListener("click", () => choose(text));
    return button;
  }));
}
