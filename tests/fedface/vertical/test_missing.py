import torch

from fedface.vertical.missing import Substitutes

Z = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
RECORDS = torch.tensor([4, 1])


def test_each_policy_is_its_definition() -> None:
    asked = torch.tensor([1, 0, 4])
    for policy, wanted in (
        ("zeros", [[0, 0], [0, 0], [0, 0]]),
        ("mean", [[2, 4], [2, 4], [2, 4]]),
        ("last", [[3, 6], [2, 4], [1, 2]]),
    ):
        memory = Substitutes(policy, 2, 5)
        assert memory(asked).tolist() == [[0, 0]] * 3
        memory.remember(Z, RECORDS)
        assert memory(asked).tolist() == wanted
        again = Substitutes(policy, 2, 5)
        again.load_state_dict(memory.state_dict())
        assert again(asked).tolist() == wanted


def test_last_is_the_last() -> None:
    memory = Substitutes("last", 2, 5)
    memory.remember(Z, RECORDS)
    memory.remember(10 * Z, RECORDS.flip(0))
    assert memory(torch.tensor([4])).tolist() == [[30, 60]]
